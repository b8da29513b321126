//! Lists events and shows one, from the store.

use axum::extract::Request;
use axum::response::Response;
use serde::Deserialize;

use super::caller::{Caller, hide_personal, hide_sender};
use super::endpoint::{json, parameter, query};
use super::{Context, Error, EventPage};
use crate::alarm::Alarm;
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::view::EventSummary;
use crate::queue::{self, EventFilter};

const LIMIT: usize = 50;
const MOST: usize = 500;

/// The query of a list. Unknown keys are errors: a misspelt filter would select the wrong events.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filters {
    pub(super) account: Option<String>,
    pub(super) event: Option<String>,
    pub(super) from: Option<String>,
    pub(super) target: Option<String>,
    pub(super) state: Option<String>,
    pub(super) since: Option<String>,
    pub(super) until: Option<String>,
    pub(super) limit: Option<usize>,
    /// The `cursor` of the previous page.
    pub(super) cursor: Option<String>,
    /// What an operator looks for: see [`Search`].
    pub(super) q: Option<String>,
}

/// What the text of a search box stands for.
enum Search {
    Event(EventId),
    /// A line of WeChat's alarm, or a user alone.
    Alarm(Alarm),
}

pub(super) async fn list(context: Context, request: Request) -> Result<Response, Error> {
    let is_viewer = Caller::of(&request).is_viewer();
    let mut filters = query::<Filters>(&request)?;
    let search = filters.q.take().map(|text| Search::of(&text));
    let mut filter = filters.parse(UnixMillis::now())?;
    if is_viewer && (filter.from.is_some() || search.as_ref().is_some_and(|search| !matches!(search, Search::Event(_))))
    {
        return Err(Error::Viewer);
    }
    if search.as_ref().is_some_and(|search| !search.narrow(&mut filter)) {
        return json(&EventPage { events: Vec::new(), cursor: None });
    }
    let mut page = find(&context, filter).await?;
    if let Some(search) = &search {
        page.events.retain(|event| search.is_for(event));
        page.cursor.take_if(|_| matches!(search, Search::Event(_)));
    }
    if is_viewer {
        page.events.iter_mut().for_each(hide_sender);
    }
    json(&page)
}

/// A page of events.
pub(super) async fn find(context: &Context, mut filter: EventFilter) -> Result<EventPage, Error> {
    let page = filter.limit;
    // One more than requested shows whether there is a next page.
    filter.limit += 1;
    let mut events = context.inspect(move |store| async move { store.events(&filter).await }).await?;
    let more = events.len() > page;
    events.truncate(page);
    let cursor = events.last().filter(|_| more).map(|last| last.id.to_string());
    Ok(EventPage { events, cursor })
}

impl Search {
    /// An event's id, an alarm that names a user or a time, or else an OpenID.
    fn of(text: &str) -> Self {
        let text = text.trim();
        if let Ok(id) = text.parse() {
            return Self::Event(id);
        }
        let alarm = Alarm::parse(text);
        Self::Alarm(match alarm.names_a_push() {
            true => alarm,
            false => Alarm { openid: Some(text.to_owned()), ..Alarm::default() },
        })
    }

    /// Narrows a filter to what the store can find; `false` if nothing can match both.
    fn narrow(&self, filter: &mut EventFilter) -> bool {
        let (from, window) = match self {
            Self::Event(id) if id.0 >= i64::MAX.cast_unsigned() => return false,
            Self::Event(id) => (None, Some((id.moment(), UnixMillis(id.moment().0 + 1)))),
            Self::Alarm(alarm) => (alarm.openid.as_ref(), alarm.window()),
        };
        if let Self::Event(id) = self {
            // The first of the page is then that event, if it is there.
            let behind = EventId(id.0 + 1);
            filter.before = Some(filter.before.map_or(behind, |before| before.min(behind)));
            filter.limit = 1;
        }
        if let Some((since, until)) = window {
            filter.since = Some(filter.since.map_or(since, |given| given.max(since)));
            filter.until = Some(filter.until.map_or(until, |given| given.min(until)));
        }
        match (from, &filter.from) {
            (Some(from), Some(given)) => from == given,
            (Some(from), None) => {
                filter.from = Some(from.clone());
                true
            }
            (None, _) => true,
        }
    }

    /// Whether an event that the store found is meant.
    fn is_for(&self, event: &EventSummary) -> bool {
        match self {
            Self::Event(id) => event.id == *id,
            Self::Alarm(alarm) => alarm.is_about(&event.msg_type, &event.event, &event.event_key),
        }
    }
}

pub(super) async fn show(context: Context, mut request: Request) -> Result<Response, Error> {
    let id: EventId = parameter(&mut request).await?.parse()?;
    let caller = Caller::of(&request);
    let found = context.inspect(move |store| async move { store.event(id).await }).await?;
    let mut event = found.ok_or(Error::NoSuchEvent)?;
    if caller.is_viewer() {
        hide_personal(&mut event);
    }
    json(&event)
}

impl Filters {
    pub(super) fn parse(self, now: UnixMillis) -> Result<EventFilter, Error> {
        let limit = self.limit.unwrap_or(LIMIT);
        if !(1..=MOST).contains(&limit) {
            return Err(Error::Limit(MOST));
        }
        Ok(EventFilter {
            account: self.account,
            event: self.event,
            from: self.from,
            target: self.target,
            state: self.state.map(|name| state(&name).ok_or(Error::State)).transpose()?,
            since: self.since.map(|text| moment(&text, now).ok_or(Error::Time("since"))).transpose()?,
            until: self.until.map(|text| moment(&text, now).ok_or(Error::Time("until"))).transpose()?,
            before: self.cursor.map(|id| id.parse()).transpose()?,
            limit,
        })
    }
}

fn state(name: &str) -> Option<queue::DeliveryState> {
    queue::DeliveryState::ALL.into_iter().find(|state| state.name() == name)
}

/// Parses a time of RFC 3339, or an age such as `2h`.
fn moment(text: &str, now: UnixMillis) -> Option<UnixMillis> {
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Some(UnixMillis(moment.as_millisecond()));
    }
    // humantime accepts a bare 0, but no other number without a unit.
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ago = i64::try_from(humantime::parse_duration(text).ok()?.as_millis()).ok()?;
    Some(UnixMillis(now.0.checked_sub(ago)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_absolute_or_ago() {
        let now = UnixMillis(10_000_000);
        assert_eq!(moment("1970-01-01T00:00:01.5Z", now), Some(UnixMillis(1500)));
        assert_eq!(moment("1970-01-01T08:00:00+08:00", now), Some(UnixMillis(0)));
        assert_eq!(moment("2h", now), Some(UnixMillis(2_800_000)));
        assert_eq!(moment("yesterday", now), None);
        assert_eq!((moment("0", now), moment("0s", now)), (None, Some(now)), "a number has a unit");
        assert_eq!(moment("999999999years", UnixMillis(i64::MIN)), None);
    }
}
