//! The contents of the store, as the checks read them: of the embedded engine's files, or of the rows of the model engine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::ledger::DeliverySnapshot;
use super::model::DeliveryKey;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::DeliveryState;
use crate::queue::model::ModelStore;

/// A reader of the store.
pub(super) enum StoreReader {
    Sqlite(Connection),
    Model(Arc<ModelStore>),
}

impl StoreReader {
    /// The state of a delivery, when it is due, and the attempts made.
    pub(super) fn delivery(&self, event: EventId, target: &Arc<str>) -> Option<(DeliveryState, UnixMillis, u32)> {
        match self {
            Self::Sqlite(reader) => reader
                .prepare_cached(
                    "SELECT d.state, d.due, d.attempts FROM delivery d JOIN target t ON t.no = d.target \
                      WHERE d.event = ?1 AND t.name = ?2",
                )
                .unwrap()
                .query_row(params![event, &**target], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()
                .unwrap(),
            Self::Model(store) => {
                let rows = store.rows();
                rows.deliveries.get(&(event, Arc::clone(target))).map(|row| (row.state, row.due, row.attempts))
            }
        }
    }

    /// The events whose delivery to the target is pending.
    pub(super) fn pending(&self, target: &Arc<str>) -> Vec<EventId> {
        match self {
            Self::Sqlite(reader) => {
                let mut find = reader
                    .prepare_cached(
                        "SELECT d.event FROM delivery d JOIN target t ON t.no = d.target \
                          WHERE d.state = 0 AND t.name = ?1",
                    )
                    .unwrap();
                let events = find.query_map([&**target], |row| row.get(0)).unwrap();
                events.map(Result::unwrap).collect()
            }
            Self::Model(store) => {
                let rows = store.rows();
                let theirs = rows.deliveries.iter().filter(|((_, of), _)| of == target);
                let pending = theirs.filter(|(_, row)| row.state == DeliveryState::Pending);
                pending.map(|((event, _), _)| *event).collect()
            }
        }
    }

    /// How many deliveries an event has.
    pub(super) fn deliveries_of(&self, event: EventId) -> usize {
        match self {
            Self::Sqlite(reader) => {
                let mut count = reader.prepare_cached("SELECT count(*) FROM delivery WHERE event = ?1").unwrap();
                usize::try_from(count.query_row([event], |row| row.get::<_, i64>(0)).unwrap()).unwrap()
            }
            Self::Model(store) => store.rows().deliveries.keys().filter(|(of, _)| *of == event).count(),
        }
    }

    pub(super) fn is_stored(&self, event: EventId) -> bool {
        match self {
            Self::Sqlite(reader) => {
                reader.prepare_cached("SELECT 1 FROM event WHERE id = ?1").unwrap().exists([event]).unwrap()
            }
            Self::Model(store) => store.rows().events.contains_key(&event),
        }
    }

    /// All of it, at one moment.
    pub(super) fn snapshot(&self) -> (BTreeSet<EventId>, BTreeMap<DeliveryKey, DeliverySnapshot>) {
        match self {
            Self::Sqlite(reader) => read_tables(reader),
            Self::Model(store) => {
                let rows = store.rows();
                let deliveries = rows.deliveries.iter().map(|(way, row)| {
                    let last = row.records.last().map_or(0, |record| record.number);
                    let entry = DeliverySnapshot {
                        state: row.state,
                        due: row.due,
                        attempts: row.attempts,
                        failures: row.failures,
                        ended_at: row.ended_at,
                        user: row.user,
                        records: (u32::try_from(row.records.len()).unwrap(), last),
                    };
                    (way.clone(), entry)
                });
                (rows.events.keys().copied().collect(), deliveries.collect())
            }
        }
    }
}

fn read_tables(reader: &Connection) -> (BTreeSet<EventId>, BTreeMap<DeliveryKey, DeliverySnapshot>) {
    let snapshot = reader.unchecked_transaction().unwrap();
    let mut events = snapshot.prepare_cached("SELECT id FROM event").unwrap();
    let events = events.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mut find = snapshot
        .prepare_cached(
            "SELECT d.event, t.name, d.state, d.due, d.attempts, d.failures, d.ended_at, d.user, \
                    (SELECT count(*) FROM attempt a WHERE a.event = d.event AND a.target = d.target), \
                    (SELECT coalesce(max(number), 0) FROM attempt a WHERE a.event = d.event AND a.target = d.target) \
               FROM delivery d JOIN target t ON t.no = d.target",
        )
        .unwrap();
    let rows = find.query_map([], |row| {
        let way = (row.get(0)?, Arc::from(row.get::<_, String>(1)?));
        let entry = DeliverySnapshot {
            state: row.get(2)?,
            due: row.get(3)?,
            attempts: row.get(4)?,
            failures: row.get(5)?,
            ended_at: row.get(6)?,
            user: row.get(7)?,
            records: (row.get(8)?, row.get(9)?),
        };
        Ok((way, entry))
    });
    (events, rows.unwrap().map(Result::unwrap).collect())
}
