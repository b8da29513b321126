//! Logs: one line per event, on stderr. `line.rs` formats a line as JSON, or collects it for a format of people;
//! `log_writer.rs` writes it.
//!
//! Invariants: logging never waits for the reader of the log; a line's fields are flat beside `timestamp`, `level` and
//! `message`, so JSON has no module path, which tracing calls `target` like our field; the level can change while the
//! relay runs. Each caller decides what it logs; this file only decides how an OpenID is shown.

mod line;
mod log_writer;

use std::borrow::Cow;
use std::io::{self, IsTerminal};
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

pub use line::LogLine;
pub use log_writer::{flush, flush_within, take_dropped};

use log_writer::LogWriter;

use crate::escape;

/// The period of a [`LogThrottle`].
const THROTTLE_PERIOD: Duration = Duration::from_secs(10);

/// `[log]` of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `None`: text on a terminal, else JSON.
    pub format: Option<LogFormat>,
    /// A level (`info`) or a filter (`info,wxrelay::push=debug`).
    pub level: String,
    pub openid: OpenIds,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Text,
}

/// How OpenIDs are shown in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenIds {
    /// As a short hash, which is the same for every line of one user.
    Hash,
    Clear,
}

/// Why logs cannot start, or the level cannot change.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "log.level is `{level}`: expected trace, debug, info, warn, error or off, or a filter as in `info,wxrelay=debug`"
    )]
    Level {
        level: String,
        /// The filter's parse error; `None` for a misspelt level.
        #[source]
        source: Option<ParseError>,
    },
    #[error("logs are already set up in this process")]
    Started(#[source] TryInitError),
    #[error("cannot start the log's thread")]
    Thread(#[source] io::Error),
    #[error("the log level cannot change: logging has stopped")]
    Gone(#[source] reload::Error),
}

/// The running logs.
#[derive(Debug)]
pub struct Handle(reload::Handle<Targets, Registry>);

/// Writes a line for people, without its line feed. Its texts must be escaped.
pub type TextFormat = Box<dyn Fn(&LogLine) -> String + Send + Sync>;

/// Starts the logs of this process.
pub fn init(settings: &Settings, text: TextFormat) -> Result<Handle, Error> {
    let (filter, handle) = reload::Layer::new(filter(&settings.level)?);
    let writer = LogWriter::to_stderr().map_err(Error::Thread)?;
    let by_reader = || if io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json };
    let lines = lines(settings.format.unwrap_or_else(by_reader), writer, text);
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(Error::Started)?;
    Ok(Handle(handle))
}

impl Handle {
    /// Changes the level; on an error the old one stays.
    pub fn set_level(&self, level: &str) -> Result<(), Error> {
        self.0.reload(filter(level)?).map_err(Error::Gone)
    }
}

/// Parses `log.level`.
pub fn filter(level: &str) -> Result<Targets, Error> {
    let bad = |source| Error::Level { level: level.to_owned(), source };
    // A filter may be a bare module path, so a misspelt level would be parsed as one and would disable all logs.
    if !level.contains(['=', ',', '[', ':']) && level.parse::<LevelFilter>().is_err() {
        return Err(bad(None));
    }
    let parts: Vec<_> = level.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(bad(None));
    }
    parts.join(",").parse().map_err(|source| bad(Some(source)))
}

/// An OpenID as logs show it: in clear, or as the first 12 hex digits of its SHA-256.
pub fn openid(shown: OpenIds, openid: &str) -> Cow<'_, str> {
    match shown {
        OpenIds::Clear => escape::line(openid),
        OpenIds::Hash => {
            let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
            let shown = &Sha256::digest(openid)[..6];
            Cow::Owned(shown.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(digit).collect())
        }
    }
}

/// A rate limit for a log line that unauthenticated clients can cause: by default one line in ten seconds.
#[derive(Debug)]
pub struct LogThrottle {
    /// The most lines in one period.
    limit: u32,
    period: Mutex<ThrottlePeriod>,
}

#[derive(Debug, Default)]
struct ThrottlePeriod {
    started: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl Default for LogThrottle {
    fn default() -> Self {
        Self::at_most(1)
    }
}

impl LogThrottle {
    /// Allows up to `limit` lines in ten seconds.
    pub fn at_most(limit: u32) -> Self {
        Self { limit, period: Mutex::default() }
    }

    /// Allows a line, with the number of lines suppressed since the last one; `None` suppresses this line too.
    pub fn allow(&self) -> Option<u64> {
        let mut period = self.period.lock();
        if period.started.is_none_or(|started| started.elapsed() >= THROTTLE_PERIOD) {
            (period.started, period.written) = (Some(Instant::now()), 0);
        }
        if period.written == self.limit {
            period.suppressed += 1;
            return None;
        }
        period.written += 1;
        Some(std::mem::take(&mut period.suppressed))
    }
}

fn lines<S, W>(format: LogFormat, writer: W, text: TextFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    match format {
        LogFormat::Json => fmt::layer().event_format(line::JsonFormat).with_writer(writer).boxed(),
        LogFormat::Text => fmt::layer().event_format(line::PeopleFormat(text)).with_writer(writer).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn json_lines_are_flat_and_a_field_may_be_called_target() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(lines(
            LogFormat::Json,
            SharedBuffer(written.clone()),
            Box::new(|_| String::new()),
        ));
        tracing::subscriber::with_default(subscriber, || {
            let (shown, absent) = (tracing::field::display("a \"b\"\n\u{1}c"), None::<u8>);
            tracing::info!(
                target = "crm",
                attempt = 2_u32,
                took = 0.25,
                good = true,
                ago = -3,
                shown,
                absent,
                "attempt"
            );
        });
        let line = String::from_utf8(written.lock().clone()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["message"], "attempt");
        assert_eq!(json["level"], "INFO");
        assert_eq!(json["target"], "crm");
        assert_eq!(json["attempt"], 2);
        assert_eq!((&json["took"], &json["good"], &json["ago"]), (&0.25.into(), &true.into(), &(-3).into()));
        assert_eq!(json["shown"], "a \"b\"\n\u{1}c");
        assert_eq!(json.get("absent"), None);
        assert!(json["timestamp"].as_str().is_some_and(|text| text.len() == 27 && text.ends_with('Z')), "{line}");
        assert!(line.ends_with("}\n") && line.lines().count() == 1, "{line:?}");
        assert_eq!(line.matches("target").count(), 1, "{line}");
    }

    #[test]
    fn a_format_of_people_gets_every_field_by_name() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let format = |line: &LogLine| format!("{} {} {:?}", line.level, line.message, line.fields);
        let layer = lines(LogFormat::Text, SharedBuffer(written.clone()), Box::new(format));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let absent = None::<u8>;
            tracing::warn!(target = "crm", attempt = 2_u32, took = 0.25, good = true, absent, "attempt");
        });
        let line = String::from_utf8(written.lock().clone()).unwrap();
        let fields = r#"[("target", "crm"), ("attempt", "2"), ("took", "0.25"), ("good", "true")]"#;
        assert_eq!(line, format!("WARN attempt {fields}\n"));
    }

    #[test]
    fn a_level_is_a_level_or_a_filter() {
        for good in ["info", "INFO", "off", "info,wxrelay=debug", "warn, wxrelay=TRACE,"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["wxrelay=loud", "inof", " , "] {
            let error = filter(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("log.level is `{bad}`")), "{error}");
        }
    }

    #[test]
    fn an_openid_is_hashed_unless_asked_otherwise() {
        assert_eq!(openid(OpenIds::Clear, "abc"), "abc");
        assert_eq!(openid(OpenIds::Clear, "a\u{9b}2J\nb"), "a\\u009b2J\\nb");
        // SHA-256 of "abc" from FIPS 180-2, appendix B.1.
        assert_eq!(openid(OpenIds::Hash, "abc"), "ba7816bf8f01");
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_line_counts_the_suppressed_ones() {
        let throttle = LogThrottle::default();
        assert_eq!(throttle.allow(), Some(0));
        assert!((0..1000).all(|_| throttle.allow().is_none()));
        tokio::time::advance(THROTTLE_PERIOD).await;
        assert_eq!(throttle.allow(), Some(1000));
        assert_eq!(throttle.allow(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttle_may_allow_some_lines_in_a_period() {
        let throttle = LogThrottle::at_most(3);
        assert_eq!([(); 5].map(|()| throttle.allow()), [Some(0), Some(0), Some(0), None, None]);
        tokio::time::advance(THROTTLE_PERIOD).await;
        assert_eq!([(); 4].map(|()| throttle.allow()), [Some(2), Some(0), Some(0), None]);
    }

    #[derive(Clone)]
    struct SharedBuffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for SharedBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl fmt::MakeWriter<'_> for SharedBuffer {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }
}
