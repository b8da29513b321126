//! Finding the events of a sweep's next step, on a connection of its own: the writer then reads only what it changes.
//!
//! One search reads a limited number of rows, so that it is short also where few of many rows match.

use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use super::inspect::{LAST_ID, SqliteReader};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::ordered;
use crate::queue::{DeliveryState, Error, EventFilter, Sweep, SweepAction};

/// Events changed in one transaction: few enough not to delay a push.
pub(super) const STEP: usize = 250;

/// The condition that the event `e` is about the person `?5`. The first look into a text is cheap, and few pass it.
pub(super) const IS_ABOUT: &str = "(instr(char(31) || e.from_user || char(31), char(31) || ?5 || char(31)) > 0 \
    OR e.key IS NULL AND e.msg_type <> 'text' AND instr(coalesce(e.clear, e.body), CAST(?5 AS BLOB)) > 0 AND EXISTS \
       (WITH text(t, p) AS MATERIALIZED (SELECT lower(CAST(coalesce(e.clear, e.body) AS TEXT)), lower(?5)) \
        SELECT 1 FROM text, (SELECT 'openid' AS n UNION ALL SELECT 'openpid' UNION ALL SELECT 'username') \
         WHERE instr(t, n || '><![cdata[' || p || ']') > 0 OR instr(t, n || '>' || p || '<') > 0 \
            OR instr(t, n || '\":\"' || p || '\"') > 0 OR instr(t, n || '\": \"' || p || '\"') > 0))";

/// What one search found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SweepCandidates {
    /// Events with deliveries to change.
    pub(super) events: Vec<EventId>,
    /// The event behind which the next search continues; `None` if there is nothing more.
    pub(super) next: Option<EventId>,
}

impl SweepCandidates {
    /// The next events of a list.
    pub(super) fn among(listed: &[EventId], after: EventId) -> Self {
        let mut events: Vec<_> = listed.iter().copied().filter(|event| *event > after).collect();
        events.sort_unstable();
        events.dedup();
        let more = events.len() > STEP;
        events.truncate(STEP);
        Self { next: events.last().copied().filter(|_| more), events }
    }
}

impl SqliteReader {
    /// The events of a sweep's next step, searched for in `limit` rows at most.
    pub(super) fn find_candidates(
        &self,
        sweep: &Sweep,
        after: EventId,
        limit: usize,
    ) -> Result<SweepCandidates, Error> {
        let Some(terms) = SweepConditions::of(&self.connection, sweep)? else { return Ok(SweepCandidates::default()) };
        let of_event = event_condition();
        let sql = match terms.path {
            AccessPath::DeadIndex => "SELECT event, 1 FROM delivery INDEXED BY delivery_dead \
                           WHERE state = 2 AND target = ?6 AND event > ?1 AND event < ?2 ORDER BY event LIMIT ?8"
                .to_owned(),
            AccessPath::DeliveryTable => format!(
                "SELECT d.event, {} FROM delivery d WHERE d.event > ?1 AND d.event < ?2 ORDER BY d.event LIMIT ?8",
                terms.delivery
            ),
            AccessPath::EventTable => format!(
                "SELECT e.id, {of_event} AND {} FROM event e WHERE e.id > ?1 AND e.id < ?2 ORDER BY e.id LIMIT ?8",
                terms.any_delivery()
            ),
        };
        let mut values = terms.values(after, LAST_ID);
        values.push((limit.cast_signed() as i64).into());
        let mut find = self.connection.prepare_cached(&sql)?;
        let mut rows = find.query(params_from_iter(values))?;
        let (mut found, mut rows_read) = (SweepCandidates::default(), 0);
        while let Some(row) = rows.next()? {
            let event: EventId = row.get(0)?;
            rows_read += 1;
            if row.get(1)? && found.events.last() != Some(&event) {
                found.events.push(event);
            }
            if found.events.len() == STEP {
                found.next = Some(event);
                break;
            }
            if rows_read == limit {
                // There may be more rows of this event: the next search begins with it.
                found.events.pop_if(|last| *last == event);
                found.next = Some(EventId(event.0 - 1));
            }
        }
        Ok(found)
    }

    /// How much a sweep would change now, behind `after`: see
    /// [`SweepProgress::changed`](crate::queue::SweepProgress::changed).
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn count(&self, sweep: &Sweep, after: Option<EventId>) -> Result<u64, Error> {
        let after = after.unwrap_or(EventId(0));
        let Some(events) = &sweep.events else { return self.count_in(sweep, after, LAST_ID) };
        let events = ordered::set(events.iter().filter(|event| **event > after && **event < LAST_ID));
        events.into_iter().map(|event| self.count_in(sweep, EventId(event.0 - 1), EventId(event.0 + 1))).sum()
    }

    /// The first moment after now and after every stored event: a sweep up to it covers all of them. Ids may be ahead
    /// of a clock that was set back.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub(in crate::queue) fn end(&self) -> Result<UnixMillis, Error> {
        let newest = self.newest()?.map_or(UnixMillis(0), EventId::moment);
        Ok(newest.max(UnixMillis::now()).after(Duration::from_millis(1)))
    }

    fn count_in(&self, sweep: &Sweep, after: EventId, end: EventId) -> Result<u64, Error> {
        let Some(terms) = SweepConditions::of(&self.connection, sweep)? else { return Ok(0) };
        let (mut values, of_event) = (terms.values(after, end), event_condition());
        let sql = match &sweep.action {
            SweepAction::ReplayTo(to) => {
                values.push(target_number(&self.connection, to)?.into());
                format!(
                    "SELECT count(*) FROM event e WHERE e.id > ?1 AND e.id < ?2 AND {of_event} AND {} AND NOT EXISTS \
                       (SELECT 1 FROM delivery d WHERE d.event = e.id AND d.target = ?8 AND d.state = 0)",
                    terms.any_delivery()
                )
            }
            SweepAction::Forget => format!(
                "SELECT count(*) FROM event e WHERE e.id > ?1 AND e.id < ?2 AND {of_event} AND {}",
                terms.any_delivery()
            ),
            SweepAction::Replay | SweepAction::Drop | SweepAction::Redirect(_) => format!(
                "SELECT count(*) FROM delivery d WHERE d.event > ?1 AND d.event < ?2 AND {} \
                    AND (?3 IS NULL AND ?4 IS NULL AND ?5 IS NULL OR \
                         EXISTS (SELECT 1 FROM event e WHERE e.id = d.event AND {of_event}))",
                terms.delivery
            ),
        };
        let count: i64 = self.connection.prepare_cached(&sql)?.query_row(params_from_iter(values), |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}

/// The filter's conditions on the event.
fn event_condition() -> String {
    format!(
        "(?3 IS NULL OR e.account = ?3) \
         AND (?4 IS NULL OR e.event = ?4 COLLATE NOCASE OR e.msg_type = ?4 COLLATE NOCASE) \
         AND (?5 IS NULL OR {IS_ABOUT})"
    )
}

/// Which table or index the events are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AccessPath {
    /// The index of a target's dead letters.
    DeadIndex,
    /// The deliveries, which are small beside their events.
    DeliveryTable,
    EventTable,
}

/// A sweep as conditions of SQL.
struct SweepConditions<'s> {
    filter: &'s EventFilter,
    target: Option<i64>,
    /// The condition on the delivery.
    delivery: String,
    path: AccessPath,
}

impl<'s> SweepConditions<'s> {
    /// `None` if the store does not know the target.
    fn of(connection: &Connection, sweep: &'s Sweep) -> Result<Option<Self>, Error> {
        let filter = &sweep.filter;
        let target = match &filter.target {
            Some(name) => match target_number(connection, name)? {
                None => return Ok(None),
                known => known,
            },
            None => None,
        };
        let state = match &sweep.action {
            SweepAction::Replay => "d.state <> 0".to_owned(),
            SweepAction::ReplayTo(_) | SweepAction::Forget => "d.state >= 0".to_owned(),
            SweepAction::Drop => "d.state IN (0, 2)".to_owned(),
            SweepAction::Redirect(to) => {
                format!("d.state = 0 AND d.target <> {}", target_number(connection, to)?.unwrap_or_default())
            }
        };
        let delivery = format!("{state} AND (?6 IS NULL OR d.target = ?6) AND (?7 IS NULL OR d.state = ?7)");
        let of_event = filter.account.is_some() || filter.event.is_some() || filter.from.is_some();
        let of_any = matches!(sweep.action, SweepAction::ReplayTo(_) | SweepAction::Forget)
            && target.is_none()
            && filter.state.is_none();
        let path = match (of_event || of_any, target, filter.state) {
            (true, ..) => AccessPath::EventTable,
            (false, Some(_), Some(DeliveryState::Dead)) => AccessPath::DeadIndex,
            (false, ..) => AccessPath::DeliveryTable,
        };
        let delivery = if of_any { String::new() } else { delivery };
        Ok(Some(Self { filter, target, delivery, path }))
    }

    /// The condition that an event has one of the selected deliveries, if it needs one.
    fn any_delivery(&self) -> String {
        if self.delivery.is_empty() {
            return "?6 IS NULL AND ?7 IS NULL".to_owned();
        }
        format!("EXISTS (SELECT 1 FROM delivery d WHERE d.event = e.id AND {})", self.delivery)
    }

    /// The values of `?1` to `?7`: the range of events, as narrow as the filter allows, and the filter's other parts.
    fn values(&self, after: EventId, end: EventId) -> Vec<Value> {
        let EventFilter { account, event, from, state, since, until, .. } = self.filter;
        let start = since.map_or(0, |since| EventId::first_at(since).0.saturating_sub(1));
        let end = until.map_or(end, |until| end.min(EventId::first_at(until)));
        let id = |id: u64| Value::from(id.min(LAST_ID.0).cast_signed());
        let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::Text);
        vec![
            id(after.0.max(start)),
            id(end.0),
            text(account),
            text(event),
            text(from),
            self.target.into(),
            state.map(|state| state as i64).into(),
        ]
    }
}

fn target_number(connection: &Connection, target: &str) -> rusqlite::Result<Option<i64>> {
    let mut find = connection.prepare_cached("SELECT no FROM target WHERE name = ?1")?;
    find.query_row([target], |row| row.get(0)).optional()
}
