//! The flags that select events, for `events ls` and `events replay`.

use std::time::Duration;

use anyhow::Context as _;

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
    /// Select events received since a time, such as 2026-11-20T08:00:00Z, or an age, such as 2h
    #[arg(long, value_parser = moment)]
    since: Option<UnixMillis>,
    /// Select events received before a time or an age, as in --since
    #[arg(long, value_parser = moment)]
    until: Option<UnixMillis>,
}

impl FilterArgs {
    pub(super) fn filter(self) -> EventFilter {
        let Self { account, event, from, target, state, since, until } = self;
        EventFilter { account, event, from, target, state, since, until, ..EventFilter::default() }
    }
}

fn state(text: &str) -> anyhow::Result<DeliveryState> {
    let known = DeliveryState::ALL.into_iter().find(|state| state.name() == text);
    known.context("expected pending, delivered, dead, expired or cancelled")
}

/// A time of RFC 3339, or an age.
fn moment(text: &str) -> anyhow::Result<UnixMillis> {
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Ok(UnixMillis(moment.as_millisecond()));
    }
    let age: Duration = humantime::parse_duration(text).context("expected 2026-11-20T08:00:00Z, or an age as in 2h")?;
    Ok(UnixMillis(UnixMillis::now().0 - i64::try_from(age.as_millis())?))
}
