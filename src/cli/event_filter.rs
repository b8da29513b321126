//! The flags that select events, for `events ls` and `events replay`.

use std::time::Duration;

use anyhow::Context as _;
use jiff::civil::DateTime;

use super::display::{TimeArgs, Zone};
use crate::clock::UnixMillis;
use crate::queue::{DeliveryState, EventFilter};

#[derive(clap::Args)]
pub(super) struct FilterArgs {
    /// Select the events of one account, such as shop
    #[arg(long)]
    account: Option<String>,
    /// Select one event name or message type, such as SCAN or text
    #[arg(long)]
    event: Option<String>,
    /// Select the events of one user, by OpenID
    #[arg(long)]
    from: Option<String>,
    /// Select the events for one target, such as crm
    #[arg(long)]
    target: Option<String>,
    /// Select events with a delivery in this state: pending, delivered, dead, expired or cancelled
    #[arg(long, value_parser = state)]
    state: Option<DeliveryState>,
    /// Select events received since a time, such as 2026-11-20T08:00:00Z, a local one, such as 2026-11-20 or
    /// '2026-11-20 08:00', or an age, such as 2h
    #[arg(long, value_parser = moment)]
    since: Option<Moment>,
    /// Select events received before a time or an age, as in --since
    #[arg(long, value_parser = moment)]
    until: Option<Moment>,
}

/// A time of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    At(UnixMillis),
    /// Without a zone; a date alone is its midnight.
    Civil(DateTime),
}

impl Moment {
    fn resolve(self, zone: &Zone) -> UnixMillis {
        match self {
            Self::At(at) => at,
            Self::Civil(time) => zone.at(time).unwrap_or(UnixMillis(i64::MAX)),
        }
    }
}

impl FilterArgs {
    /// The filter; times without a zone are local, or of UTC with `--utc`.
    pub(super) fn filter(self, times: TimeArgs) -> EventFilter {
        let Self { account, event, from, target, state, since, until } = self;
        let zone = Zone::new(times);
        let [since, until] = [since, until].map(|moment| moment.map(|moment| moment.resolve(&zone)));
        EventFilter { account, event, from, target, state, since, until, ..EventFilter::default() }
    }
}

fn state(text: &str) -> anyhow::Result<DeliveryState> {
    let known = DeliveryState::ALL.into_iter().find(|state| state.name() == text);
    known.context("expected pending, delivered, dead, expired or cancelled")
}

/// A time of RFC 3339, a time or date without a zone, or an age.
fn moment(text: &str) -> anyhow::Result<Moment> {
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Ok(Moment::At(UnixMillis(moment.as_millisecond())));
    }
    if let Ok(time) = text.parse::<DateTime>() {
        return Ok(Moment::Civil(time));
    }
    let age: Duration = humantime::parse_duration(text)
        .context("expected 2026-11-20T08:00:00Z, 2026-11-20, '2026-11-20 08:00', or an age as in 2h")?;
    Ok(Moment::At(UnixMillis(UnixMillis::now().0 - i64::try_from(age.as_millis())?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_have_a_zone_or_none_and_a_date_needs_no_time() {
        let zone = Zone::new(TimeArgs { utc: true });
        let read = |text: &str| moment(text).map(|moment| moment.resolve(&zone)).ok();
        let midnight = Some(UnixMillis(1_795_132_800_000));
        for text in ["2026-11-20", "2026-11-20T00:00", "2026-11-20 00:00:00", "2026-11-20T08:00:00+08:00"] {
            assert_eq!(read(text), midnight, "{text}");
        }
        assert!(read("2h").is_some_and(|at| at < UnixMillis::now()));
        for text in ["yesterday", "2026-13-01", "20.11.2026", "5"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
