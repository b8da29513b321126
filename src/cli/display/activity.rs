//! One line per push and per attempt, the same in the log of `serve` and in `events tail`:
//! `12:20:32  text  o#3fa9..  -> crm 200  2.1 ms  evt_..`.

use super::line::{Color, StyledLine, wrap};
use super::{TimeArgs, Zone, allows_color};
use crate::cli::output;
use crate::clock::UnixMillis;
use crate::telemetry::LogLine;

/// The columns of an account, a kind, a user, and of what happened.
const ACCOUNT: usize = 8;
const KIND: usize = 11;
const USER: usize = 8;
const WHAT: usize = 12;
/// Those of a time and the blanks after it: the margin of a log line's further lines.
const TIME: usize = 10;
/// The hex digits of an OpenID's hash that are shown.
const HASH_SHOWN: usize = 4;

/// A push or an attempt, as a log line or an activity of the API has it: the value of each field by its name.
pub(in crate::cli) struct ActivityLine<'a> {
    pub(in crate::cli) at: UnixMillis,
    pub(in crate::cli) is_push: bool,
    /// Of which replica, where several are followed.
    pub(in crate::cli) replica: Option<&'a str>,
    pub(in crate::cli) field: &'a dyn Fn(&str) -> Option<String>,
}

/// How activity is written.
pub(in crate::cli) struct ActivityFormat {
    zone: Zone,
    /// Whether lines name their account: with one account they need not.
    with_account: bool,
    is_terminal: bool,
    color: bool,
    width: fn() -> Option<usize>,
}

impl ActivityFormat {
    /// For stdout.
    pub(in crate::cli) fn stdout(times: TimeArgs, with_account: bool) -> Self {
        Self::new(times, with_account, output::terminal_width)
    }

    /// For the log, on stderr.
    pub(in crate::cli) fn log(with_account: bool) -> Self {
        Self::new(TimeArgs { utc: false }, with_account, output::stderr_width)
    }

    fn new(times: TimeArgs, with_account: bool, width: fn() -> Option<usize>) -> Self {
        let is_terminal = width().is_some();
        Self { zone: Zone::new(times), with_account, is_terminal, color: is_terminal && allows_color(), width }
    }

    /// The line of a push or an attempt.
    pub(in crate::cli) fn line(&self, activity: &ActivityLine<'_>) -> String {
        let limit = (self.width)().unwrap_or(usize::MAX);
        self.styled(activity, limit).encode(self.color)
    }

    /// A line of the log.
    pub(in crate::cli) fn log_line(&self, line: &LogLine) -> String {
        let at = UnixMillis::now();
        let is_push = line.message == "push";
        if is_push || line.message == "attempt" {
            let field = |name: &str| line.fields.iter().find(|(of, _)| *of == name).map(|(_, value)| value.clone());
            return self.line(&ActivityLine { at, is_push, replica: None, field: &field });
        }
        let (level, color) = match line.level {
            tracing::Level::ERROR => ("ERROR  ", Color::Red),
            tracing::Level::WARN => ("WARN  ", Color::Yellow),
            tracing::Level::INFO => ("", Color::Plain),
            _ => ("DEBUG  ", Color::Dim),
        };
        let mut text = format!("{}  {level}{}", self.time(at), line.message);
        for (name, value) in &line.fields {
            text += &format!("  {name}={value}");
        }
        let text = wrap(&text, (self.width)().unwrap_or(usize::MAX), TIME);
        if !self.color || level.is_empty() {
            return text;
        }
        let level = level.trim_end();
        text.replacen(level, &StyledLine::new(level, color).encode(true), 1)
    }

    /// The time of day where people watch; all of it in a file.
    fn time(&self, at: UnixMillis) -> String {
        if self.is_terminal { self.zone.time_of_day(at) } else { self.zone.rfc3339(at) }
    }

    fn styled(&self, activity: &ActivityLine<'_>, limit: usize) -> StyledLine {
        let field = |name: &str| (activity.field)(name).unwrap_or_default();
        let mut line = StyledLine::new(&self.time(activity.at), Color::Dim);
        let is_narrow = limit < usize::MAX;
        let push_cell = |line: &mut StyledLine, text: &str, columns: usize| {
            line.push("  ", Color::Plain);
            let end = line.width() + columns;
            line.append(StyledLine::plain(text).elide(if is_narrow { columns } else { limit }));
            line.pad_to(end);
        };
        if let Some(replica) = activity.replica {
            push_cell(&mut line, replica, ACCOUNT);
        }
        if self.with_account {
            push_cell(&mut line, &field("account"), ACCOUNT);
        }
        push_cell(&mut line, &field("kind"), KIND);
        push_cell(&mut line, &user(&field("openid"), is_narrow), USER);
        line.push("  ", Color::Plain);
        let end = line.width() + WHAT;
        line.append(if activity.is_push { push(&field) } else { attempt(&field) });
        line.pad_to(end);
        let took: f64 = field("duration_ms").parse().unwrap_or_default();
        line.push(&format!("  {took:.1} ms"), Color::Dim);
        let error = if activity.is_push { refusal(&field) } else { field("error") };
        if !error.is_empty() {
            line.push(&format!("  {error}"), Color::Plain);
        }
        let event = StyledLine::new(&format!("  {}", field("event")), Color::Dim);
        // The id is the first to be left out: `events ls` has it.
        if event.width() > 2 && line.width() + event.width() <= limit {
            line.append(event);
        }
        line.truncate(limit)
    }
}

/// `o#3fa9..` for a hash on a terminal; else what the log has.
fn user(openid: &str, is_narrow: bool) -> String {
    let is_hash = openid.len() == 12 && openid.bytes().all(|byte| byte.is_ascii_hexdigit());
    match openid {
        "" => "-".to_owned(),
        hash if is_hash && is_narrow => format!("o#{}..", &hash[..HASH_SHOWN]),
        whole => whole.to_owned(),
    }
}

/// The result of a push.
fn push(field: &dyn Fn(&str) -> String) -> StyledLine {
    let result = field("result");
    let color = match &*result {
        "accepted" | "verified" => Color::Green,
        "duplicate" => Color::Dim,
        _ => Color::Red,
    };
    StyledLine::new(&result, color)
}

/// Where a push that was not accepted came from, and how many like it have no line.
fn refusal(field: &dyn Fn(&str) -> String) -> String {
    if matches!(&*field("result"), "accepted" | "verified" | "duplicate") {
        return String::new();
    }
    let (peer, more) = (field("peer"), field("held_back"));
    let peer = if peer.is_empty() { peer } else { format!("from {peer}") };
    if more.is_empty() { peer } else { format!("{peer} and {more} more") }
}

/// `-> crm 200`, and with what follows if it failed: `-> crm #2 503 retry`.
fn attempt(field: &dyn Fn(&str) -> String) -> StyledLine {
    let (outcome, number, status) = (field("outcome"), field("attempt"), field("status"));
    let mut line = StyledLine::plain("-> ").with(&field("target"), Color::Bold);
    if number != "1" {
        line.push(&format!(" #{number}"), Color::Plain);
    }
    let status = if status.is_empty() { "no answer" } else { &status };
    let color = match &*outcome {
        "delivered" => Color::Green,
        "retry" => Color::Yellow,
        _ => Color::Red,
    };
    if outcome != "expired" {
        line.push(&format!(" {status}"), color);
    }
    if outcome != "delivered" {
        line.push(&format!(" {outcome}"), color);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(width: fn() -> Option<usize>, with_account: bool, is_push: bool, fields: &[(&str, &str)]) -> String {
        let is_terminal = width().is_some();
        let zone = Zone::new(TimeArgs { utc: true });
        let format = ActivityFormat { zone, with_account, is_terminal, color: false, width };
        let field = |name: &str| fields.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned());
        format.line(&ActivityLine { at: UnixMillis(1_795_161_600_120), is_push, replica: None, field: &field })
    }

    const PUSH: [(&str, &str); 6] = [
        ("event", "evt_1a1fe9c9a6a00000"),
        ("account", "shop"),
        ("kind", "text"),
        ("result", "accepted"),
        ("duration_ms", "1.3"),
        ("openid", "3fa9c1d2e4b5"),
    ];

    #[test]
    fn a_push_and_an_attempt_are_one_line_each() {
        let wide = || Some(80);
        let push = shown(wide, false, true, &PUSH);
        assert_eq!(push, "08:00:00  text         o#3fa9..  accepted      1.3 ms  evt_1a1fe9c9a6a00000");
        let narrow = shown(|| Some(70), true, true, &PUSH);
        assert_eq!(narrow, "08:00:00  shop      text         o#3fa9..  accepted      1.3 ms");
        let attempt = [
            ("kind", "scan"),
            ("target", "crm"),
            ("attempt", "2"),
            ("outcome", "retry"),
            ("status", "503"),
            ("duration_ms", "2.1"),
            ("error", "status 503"),
            ("event", "evt_1a1fe9c9a6a00000"),
        ];
        let shown = shown(wide, false, false, &attempt);
        assert_eq!(shown, "08:00:00  scan         -         -> crm #2 503 retry  2.1 ms  status 503");
    }

    #[test]
    fn a_file_gets_all_of_it() {
        let push = shown(|| None, true, true, &PUSH);
        assert!(push.starts_with("2026-11-20T08:00:00.120Z  shop "), "{push}");
        assert!(push.ends_with("evt_1a1fe9c9a6a00000"), "{push}");
    }

    #[test]
    fn a_refused_push_has_its_sender() {
        let fields = [
            ("kind", "none"),
            ("result", "signature"),
            ("peer", "203.0.113.7"),
            ("held_back", "12"),
            ("duration_ms", "0.1"),
        ];
        let shown = shown(|| Some(100), false, true, &fields);
        assert_eq!(shown, "08:00:00  none         -         signature     0.1 ms  from 203.0.113.7 and 12 more");
    }
}
