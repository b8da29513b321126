//! How commands show lists to people: one look for all of them, on a terminal and in a pipe.
//!
//! On a terminal a line is never wider than the terminal, and states have colours, unless `NO_COLOR` is set. Elsewhere
//! nothing is shortened or coloured. Times are local, or UTC with `--utc`. Widths are those of a terminal, where a
//! Chinese character takes two columns.

mod activity;
mod line;
mod table;
mod zone;

pub(super) use self::activity::{ActivityFormat, ActivityLine};
pub(super) use self::line::{Color, StyledLine, wrap};
pub(super) use self::table::{Column, Table};
pub(super) use self::zone::Zone;

use super::output;
use crate::clock::UnixMillis;
use crate::queue::DeliveryState;

/// The flag for times.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct TimeArgs {
    /// Show times, and read times without a zone, in UTC [default: local time, by $TZ or /etc/localtime]
    #[arg(long, global = true)]
    pub(super) utc: bool,
}

/// What lines are written for.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The columns of the terminal; `None` where there is none.
    pub(super) width: Option<usize>,
    pub(super) color: bool,
    pub(super) zone: Zone,
}

impl Settings {
    /// Those of stdout.
    pub(super) fn new(times: TimeArgs) -> Self {
        let width = output::terminal_width();
        Self { width, color: width.is_some() && allows_color(), zone: Zone::new(times) }
    }

    /// A moment: short on a terminal, and as RFC 3339 elsewhere.
    pub(super) fn time(&self, at: UnixMillis) -> String {
        if self.width.is_some() { self.zone.short(at, UnixMillis::now()) } else { self.zone.rfc3339(at) }
    }
}

/// Whether the environment allows colours: <https://no-color.org>.
pub(super) fn allows_color() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The colour of a delivery's state.
pub(super) fn state_color(state: DeliveryState) -> Color {
    match state {
        DeliveryState::Pending => Color::Yellow,
        DeliveryState::Delivered => Color::Green,
        DeliveryState::Dead => Color::Red,
        DeliveryState::Expired => Color::Magenta,
        DeliveryState::Cancelled => Color::Dim,
    }
}

/// The colour of a target's state, by its first word.
pub(super) fn target_color(state: &str) -> Color {
    match state.split([' ', ',']).next() {
        Some("up" | "configured") => Color::Green,
        Some("DOWN") => Color::Red,
        Some("paused") => Color::Yellow,
        _ => Color::Dim,
    }
}

/// A count that is a sign of trouble unless it is 0.
pub(super) fn trouble(count: u64, color: Color) -> StyledLine {
    StyledLine::new(&count.to_string(), if count == 0 { Color::Plain } else { color })
}

/// A span of time in its two largest units, as in `3h 20m`.
pub(super) fn span(seconds: f64) -> String {
    let (minutes, hours, days) = (seconds / 60.0, seconds / 3600.0, seconds / 86400.0);
    if days >= 1.0 {
        format!("{}d {}h", days.floor(), (hours % 24.0).floor())
    } else if hours >= 1.0 {
        format!("{}h {}m", hours.floor(), (minutes % 60.0).floor())
    } else if minutes >= 1.0 {
        format!("{}m {}s", minutes.floor(), (seconds % 60.0).floor())
    } else {
        format!("{}s", seconds.floor())
    }
}

/// How long ago a moment is.
pub(super) fn age(at: UnixMillis) -> String {
    span(UnixMillis::now().since(at).as_secs_f64())
}
