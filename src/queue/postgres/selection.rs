//! Finding the events of a sweep's next step, and counting what a sweep would change.
//!
//! One search reads a limited number of rows, so that it is short also where few of many rows match.

use std::collections::BTreeSet;

use tokio_postgres::types::{ToSql, Type};

use super::failure::Failure;
use super::inspect::{LAST_ID, first};
use super::session::{Snapshot, Value};
use super::values::{event_id, id_of, text};
use crate::event::EventId;
use crate::queue::{DeliveryState, EventFilter, Sweep, SweepAction};

/// Events changed in one transaction: few enough not to keep a user's lock for long.
pub(super) const STEP: usize = 250;

/// The values of a statement whose text is made when it is needed. What a filter does not ask for is not in the text:
/// then a plan that is made without knowing the values fits.
#[derive(Default)]
pub(super) struct Parameters(Vec<(Box<dyn ToSql + Sync + Send>, Type)>);

impl Parameters {
    /// Adds a value; how the text names it.
    pub(super) fn add(&mut self, value: impl ToSql + Sync + Send + 'static, of: Type) -> String {
        self.0.push((Box::new(value), of));
        format!("${}", self.0.len())
    }

    pub(super) fn values(&self) -> Vec<Value<'_>> {
        self.0.iter().map(|(value, of)| (&**value as &(dyn ToSql + Sync), of.clone())).collect()
    }
}

/// The filter's conditions on the event `e`.
pub(super) fn of_event(filter: &EventFilter, parameters: &mut Parameters) -> Vec<String> {
    let mut conditions = Vec::new();
    let mut add = |value: &str| parameters.add(text(value).into_owned(), Type::TEXT);
    if let Some(account) = &filter.account {
        conditions.push(format!("e.account = {}", add(account)));
    }
    if let Some(event) = &filter.event {
        let name = add(event);
        conditions.push(format!("(lower(e.event) = lower({name}) OR lower(e.msg_type) = lower({name}))"));
    }
    if let Some(person) = &filter.from {
        let person = add(person);
        conditions.push(format!("strpos(chr(31) || e.from_user || chr(31), chr(31) || {person} || chr(31)) > 0"));
    }
    conditions
}

/// Reads rows in the order of their index from now on: they are needed in that order, and only the first of them.
pub(super) async fn use_order_of_indexes(snapshot: &Snapshot<'_>) -> Result<(), Failure> {
    let sql = "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), \
               set_config('enable_sort', 'off', true)";
    snapshot.query(sql, &[]).await.map(drop)
}

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
        let mut events: Vec<_> = listed.iter().copied().filter(|event| *event > after && *event < LAST_ID).collect();
        events.sort_unstable();
        events.dedup();
        let more = events.len() > STEP;
        events.truncate(STEP);
        Self { next: events.last().copied().filter(|_| more), events }
    }
}

/// The events of a sweep's next step, searched for in `limit` rows at most.
pub(super) async fn find_candidates(
    snapshot: &Snapshot<'_>,
    sweep: &Sweep,
    after: EventId,
    limit: usize,
) -> Result<SweepCandidates, Failure> {
    let Some(mut selected) = Selection::of(snapshot, sweep, after).await? else {
        return Ok(SweepCandidates::default());
    };
    use_order_of_indexes(snapshot).await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let most = selected.parameters.add(limit, Type::INT8);
    let source = selected.source(&most);
    let values = selected.parameters.values();
    let sql = format!("SELECT id FROM ({source}) r WHERE fits LIMIT {STEP}");
    let rows = snapshot.query(&sql, &values).await?;
    let mut events = rows.iter().map(|row| Ok(event_id(row.try_get(0)?))).collect::<Result<Vec<_>, Failure>>()?;
    events.dedup();
    if rows.len() == STEP {
        return Ok(SweepCandidates { next: events.last().copied(), events });
    }
    let rows = snapshot.query(&format!("SELECT count(*), max(id) FROM ({source}) r"), &values).await?;
    let Some(row) = rows.first() else { return Ok(SweepCandidates::default()) };
    let (rows_read, last): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    let Some(last) = last.map(event_id).filter(|_| rows_read == limit) else {
        return Ok(SweepCandidates { events, next: None });
    };
    // There may be more rows of this event: the next search begins with it.
    events.pop_if(|event| *event == last);
    Ok(SweepCandidates { events, next: Some(EventId(last.0 - 1)) })
}

/// How much a sweep would change now, behind `after`: see
/// [`SweepProgress::changed`](crate::queue::SweepProgress::changed).
pub(super) async fn count(snapshot: &Snapshot<'_>, sweep: &Sweep, after: EventId) -> Result<u64, Failure> {
    let Some(mut selected) = Selection::of(snapshot, sweep, after).await? else { return Ok(0) };
    let of_event = selected.of_event();
    let range = selected.range.clone();
    let sql = match &sweep.action {
        SweepAction::ReplayTo(to) => {
            let to = selected.parameters.add(to.to_string(), Type::TEXT);
            format!(
                "SELECT count(*) FROM event e WHERE {} AND {of_event} AND {} AND NOT EXISTS (SELECT FROM delivery d \
                   WHERE d.event = e.id AND d.target = (SELECT no FROM target WHERE name = {to}) AND d.state = 0)",
                range.of("e.id"),
                selected.any_delivery()
            )
        }
        SweepAction::Forget => format!(
            "SELECT count(*) FROM event e WHERE {} AND {of_event} AND {}",
            range.of("e.id"),
            selected.any_delivery()
        ),
        SweepAction::Replay | SweepAction::Drop | SweepAction::Redirect(_) => {
            let of_event = if selected.event.is_empty() {
                String::new()
            } else {
                format!(" AND EXISTS (SELECT FROM event e WHERE e.id = d.event AND {of_event})")
            };
            format!("SELECT count(*) FROM delivery d WHERE {} AND {}{of_event}", range.of("d.event"), selected.delivery)
        }
    };
    let count: i64 = first(&snapshot.query(&sql, &selected.parameters.values()).await?, 0)?;
    Ok(u64::try_from(count).unwrap_or(0))
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

/// The range of events, as a condition on a column.
#[derive(Clone)]
struct Range {
    after: String,
    end: String,
    listed: Option<String>,
}

impl Range {
    fn of(&self, column: &str) -> String {
        let Self { after, end, listed } = self;
        let listed = listed.as_ref().map_or_else(String::new, |listed| format!(" AND {column} = ANY({listed})"));
        format!("{column} > {after} AND {column} < {end}{listed}")
    }
}

/// A sweep as conditions of SQL.
struct Selection {
    parameters: Parameters,
    range: Range,
    /// The conditions on the event.
    event: Vec<String>,
    /// The condition on the delivery; empty if an event without any is meant too.
    delivery: String,
    path: AccessPath,
}

impl Selection {
    /// `None` if the store does not know the target.
    async fn of(snapshot: &Snapshot<'_>, sweep: &Sweep, after: EventId) -> Result<Option<Self>, Failure> {
        let filter = &sweep.filter;
        let target = match &filter.target {
            Some(name) => match target_number(snapshot, name).await? {
                None => return Ok(None),
                known => known,
            },
            None => None,
        };
        let mut delivery = match &sweep.action {
            SweepAction::Replay => "d.state <> 0".to_owned(),
            SweepAction::ReplayTo(_) | SweepAction::Forget => "d.state >= 0".to_owned(),
            SweepAction::Drop => "d.state IN (0, 2)".to_owned(),
            SweepAction::Redirect(to) => {
                let to = target_number(snapshot, to).await?.unwrap_or_default();
                format!("d.state = 0 AND d.target <> {to}")
            }
        };
        if let Some(target) = target {
            delivery += &format!(" AND d.target = {target}");
        }
        if let Some(state) = filter.state {
            delivery += &format!(" AND d.state = {}", state as i16);
        }
        let of_any = matches!(sweep.action, SweepAction::ReplayTo(_) | SweepAction::Forget)
            && target.is_none()
            && filter.state.is_none();
        if of_any {
            delivery.clear();
        }
        let mut parameters = Parameters::default();
        let range = range(sweep, after, &mut parameters);
        let event = of_event(filter, &mut parameters);
        let path = match (!event.is_empty() || of_any, target, filter.state) {
            (true, ..) => AccessPath::EventTable,
            (false, Some(_), Some(DeliveryState::Dead)) => AccessPath::DeadIndex,
            (false, ..) => AccessPath::DeliveryTable,
        };
        Ok(Some(Self { parameters, range, event, delivery, path }))
    }

    fn of_event(&self) -> String {
        if self.event.is_empty() { "true".to_owned() } else { self.event.join(" AND ") }
    }

    /// The condition that an event has one of the selected deliveries, if it needs one.
    fn any_delivery(&self) -> String {
        if self.delivery.is_empty() {
            return "true".to_owned();
        }
        format!("EXISTS (SELECT FROM delivery d WHERE d.event = e.id AND {})", self.delivery)
    }

    /// The rows that a search reads: the event of each, and whether it fits.
    fn source(&self, most: &str) -> String {
        let (range, delivery) = (&self.range, &self.delivery);
        match self.path {
            // The condition of the index is in that of the delivery, with the target.
            AccessPath::DeadIndex => format!(
                "SELECT d.event AS id, true AS fits FROM delivery d WHERE d.state = 2 AND {delivery} AND {} \
                 ORDER BY d.target, d.event LIMIT {most}",
                range.of("d.event")
            ),
            AccessPath::DeliveryTable => format!(
                "SELECT d.event AS id, {delivery} AS fits FROM delivery d WHERE {} ORDER BY d.event LIMIT {most}",
                range.of("d.event")
            ),
            AccessPath::EventTable => format!(
                "SELECT e.id, {} AND {} AS fits FROM event e WHERE {} ORDER BY e.id LIMIT {most}",
                self.of_event(),
                self.any_delivery(),
                range.of("e.id")
            ),
        }
    }
}

/// The range of events, as narrow as the filter allows.
fn range(sweep: &Sweep, after: EventId, parameters: &mut Parameters) -> Range {
    let EventFilter { since, until, .. } = &sweep.filter;
    let start = since.map_or(0, |since| EventId::first_at(since).0.saturating_sub(1));
    let end = until.map_or(LAST_ID, |until| LAST_ID.min(EventId::first_at(until)));
    let after = after.max(EventId(start)).min(LAST_ID);
    let listed = sweep.events.as_ref().map(|events| {
        let events: BTreeSet<i64> =
            events.iter().filter(|event| **event < LAST_ID).map(|event| id_of(*event)).collect();
        parameters.add(events.into_iter().collect::<Vec<i64>>(), Type::INT8_ARRAY)
    });
    Range { after: parameters.add(id_of(after), Type::INT8), end: parameters.add(id_of(end), Type::INT8), listed }
}

async fn target_number(snapshot: &Snapshot<'_>, target: &str) -> Result<Option<i16>, Failure> {
    first(&snapshot.query("SELECT no FROM target WHERE name = $1", &[(&target, Type::TEXT)]).await?, None)
}
