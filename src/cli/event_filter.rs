//! The flags that select events, for `events ls` and `events replay`.

use std::time::Duration;

use anyhow::Context as _;

use crate::clock::UnixMillis;
use crate::queue::{DeliveryState, EventFilter};

#[derive(clap::Args)]
pub(super) struct FilterArgs {
    /// Only those of one account
    #[arg(long)]
    account: Option<String>,
    /// Only those of one event name or message type, as in SCAN or text
    #[arg(long)]
    event: Option<String>,
    /// Only those of one OpenID
    #[arg(long)]
    from: Option<String>,
    /// Only those for one target
    #[arg(long)]
    target: Option<String>,
    /// Only those with a delivery in this state: pending, delivered, dead, expired or cancelled
    #[arg(long, value_parser = state)]
    state: Option<DeliveryState>,
    /// Only those received since: a time of RFC 3339, or an age as in 2h
    #[arg(long, value_parser = moment)]
    since: Option<UnixMillis>,
    /// Only those received before
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
