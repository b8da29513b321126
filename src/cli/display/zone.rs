//! The time zone in which times are shown and read: the machine's, `$TZ`, or UTC.
//!
//! Of a zone's file only the rule at its end is read, which holds from now on. The history before it, for times of
//! years ago, would take 40 KB more of jiff; events are days old.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::TimeArgs;
use crate::bounded_file;
use crate::clock::UnixMillis;

/// Where Unix systems keep the zones.
const ZONES: &str = "/usr/share/zoneinfo";
const LOCAL: &str = "/etc/localtime";

#[derive(Clone, Debug)]
pub(in crate::cli) struct Zone(TimeZone);

impl Zone {
    /// UTC on request, else the zone of the environment.
    pub(in crate::cli) fn new(TimeArgs { utc }: TimeArgs) -> Self {
        if utc { Self(TimeZone::UTC) } else { Self::of(std::env::var("TZ").ok().as_deref()) }
    }

    /// The zone that `TZ` names: a file, a name, or a rule of POSIX. UTC if there is none, as for the C library.
    fn of(name: Option<&str>) -> Self {
        let zone = match name.map(|name| name.strip_prefix(':').unwrap_or(name)) {
            None => rule_of(Path::new(LOCAL)),
            Some("") => None,
            // A name that is absolute replaces the folder.
            Some(name) => rule_of(&PathBuf::from(ZONES).join(name)).or_else(|| TimeZone::posix(name).ok()),
        };
        Self(zone.unwrap_or(TimeZone::UTC))
    }

    /// The time of the clock on the wall.
    fn civil(&self, at: UnixMillis) -> Option<(DateTime, i32)> {
        let at = Timestamp::from_millisecond(at.0).ok()?;
        let offset = self.0.to_offset(at);
        Some((offset.to_datetime(at), offset.seconds()))
    }

    /// `12:20:32`
    pub(in crate::cli) fn time_of_day(&self, at: UnixMillis) -> String {
        self.civil(at).map_or_else(|| at.to_string(), |(at, _)| clock(&at))
    }

    /// `12:20:32` today, `11-30 12:20` this year, `2025-11-30` before.
    pub(in crate::cli) fn short(&self, at: UnixMillis, now: UnixMillis) -> String {
        let (Some((time, _)), Some((now, _))) = (self.civil(at), self.civil(now)) else { return at.to_string() };
        let (month, day) = (time.month(), time.day());
        if time.date() == now.date() {
            clock(&time)
        } else if time.year() == now.year() {
            format!("{month:02}-{day:02} {:02}:{:02}", time.hour(), time.minute())
        } else {
            format!("{:04}-{month:02}-{day:02}", time.year())
        }
    }

    /// RFC 3339 with the zone's offset: `2026-11-30T20:20:32.120+08:00`, and `Z` for none.
    pub(in crate::cli) fn rfc3339(&self, at: UnixMillis) -> String {
        let Some((time, offset)) = self.civil(at).filter(|(_, offset)| *offset != 0) else { return at.to_string() };
        let (sign, minutes) = (if offset < 0 { '-' } else { '+' }, offset.abs() / 60);
        format!("{time:.3}{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }

    /// The moment at which the clock on the wall shows a time.
    pub(in crate::cli) fn at(&self, time: DateTime) -> Option<UnixMillis> {
        Some(UnixMillis(self.0.to_timestamp(time).ok()?.as_millisecond()))
    }
}

/// The rule at the end of a file of RFC 9636, between line feeds.
fn rule_of(path: &Path) -> Option<TimeZone> {
    let (data, _) = bounded_file::read(path).ok()?;
    let body = data.strip_prefix(b"TZif")?.strip_suffix(b"\n")?;
    let start = body.iter().rposition(|byte| *byte == b'\n')? + 1;
    TimeZone::posix(std::str::from_utf8(&body[start..]).ok()?).ok()
}

fn clock(time: &DateTime) -> String {
    format!("{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-20T08:00:00.120Z
    const AT: UnixMillis = UnixMillis(1_795_161_600_120);

    #[test]
    fn times_are_those_of_the_zone() {
        for name in ["Asia/Shanghai", "/usr/share/zoneinfo/Asia/Shanghai", ":Asia/Shanghai", "CST-8"] {
            let zone = Zone::of(Some(name));
            if name != "CST-8" && !Path::new(ZONES).join("Asia/Shanghai").exists() {
                continue;
            }
            let at = |text: &str| zone.at(text.parse().unwrap());
            assert_eq!(zone.time_of_day(AT), "16:00:00", "{name}");
            let later = |days: i64| zone.short(AT, UnixMillis(AT.0 + days * 86_400_000));
            assert_eq!([later(0), later(1), later(60)], ["16:00:00", "11-20 16:00", "2026-11-20"]);
            assert_eq!(zone.rfc3339(AT), "2026-11-20T16:00:00.120+08:00");
            assert_eq!(at("2026-11-20"), Some(UnixMillis(AT.0 - 120 - 16 * 3_600_000)));
            assert_eq!(at("2026-11-20 16:00"), Some(UnixMillis(AT.0 - 120)));
        }
        assert_eq!(Zone::of(Some("NST3:30")).rfc3339(AT), "2026-11-20T04:30:00.120-03:30");
    }

    #[test]
    fn an_unknown_zone_is_utc() {
        for name in ["", "Nowhere/Atall", "/etc/passwd", "UTC"] {
            assert_eq!(Zone::of(Some(name)).rfc3339(AT), "2026-11-20T08:00:00.120Z", "{name}");
        }
    }
}
