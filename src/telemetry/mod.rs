//! Logs: one line per thing that happened, on stderr. `line.rs`: how it is written; `outlet.rs`: how it leaves.
//!
//! Invariants: nobody who logs waits for whoever reads; a line's fields lie flat beside `timestamp`, `level` and `message`, so the module path (which is called
//! `target` too) is left out of JSON; the level can change while the relay runs. What may be logged is decided where it
//! is logged; this file only says how an OpenID is shown.

mod line;
mod outlet;

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

pub use outlet::{flush, take_lost};

use outlet::Outlet;

/// For how long lines are counted that a stranger can cause.
const SELDOM: Duration = Duration::from_secs(10);

/// `[log]` of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How a line is written.
    pub format: LogFormat,
    /// A level (`info`) or a filter (`info,wxrelay::push=debug`).
    pub level: String,
    /// How OpenIDs are shown.
    pub openid: OpenIds,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// How OpenIDs are shown in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenIds {
    /// As a short hash, the same for one user.
    Hash,
    /// As they are.
    Clear,
}

/// What keeps logs from starting, or the level from changing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is neither a level nor a filter.
    #[error(
        "log.level is `{level}`: expected trace, debug, info, warn, error or off, or a filter as in `info,wxrelay=debug`"
    )]
    Level {
        /// What it is.
        level: String,
        /// What is wrong with it, if it is a filter.
        #[source]
        source: Option<ParseError>,
    },
    /// Logs are set up once per process.
    #[error("logs are set up already")]
    Started(#[source] TryInitError),
    /// The thread that writes the lines could not be started.
    #[error("no thread for the log")]
    Thread(#[source] io::Error),
    /// The subscriber is gone.
    #[error("the log level cannot change any more")]
    Gone(#[source] reload::Error),
}

/// The running logs; dropped, it waits until what was logged is written.
#[derive(Debug)]
pub struct Handle(reload::Handle<Targets, Registry>);

/// Starts the logs of this process.
pub fn init(settings: &Settings) -> Result<Handle, Error> {
    let (filter, handle) = reload::Layer::new(filter(&settings.level)?);
    let outlet = Outlet::to_stderr().map_err(Error::Thread)?;
    let lines = lines(settings.format, outlet, io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(Error::Started)?;
    Ok(Handle(handle))
}

impl Handle {
    /// Changes what is logged; on an error everything stays as it is.
    pub fn set_level(&self, level: &str) -> Result<(), Error> {
        self.0.reload(filter(level)?).map_err(Error::Gone)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        flush();
    }
}

/// Parses `log.level`.
pub fn filter(level: &str) -> Result<Targets, Error> {
    let bad = |source| Error::Level { level: level.to_owned(), source };
    // A filter may be a bare module path, so a misspelt level would pass for one and silence everything.
    if !level.contains(['=', ',', '[', ':']) && level.parse::<LevelFilter>().is_err() {
        return Err(bad(None));
    }
    let parts: Vec<_> = level.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(bad(None));
    }
    parts.join(",").parse().map_err(|source| bad(Some(source)))
}

/// An OpenID as logs show it: itself, or the first 12 hex digits of its SHA-256.
pub fn openid(shown: OpenIds, openid: &str) -> Cow<'_, str> {
    match shown {
        // JSON leaves U+0080 to U+009F as they are, and terminals take some of them for commands.
        OpenIds::Clear if openid.contains(char::is_control) => Cow::Owned(openid.replace(char::is_control, "\u{fffd}")),
        OpenIds::Clear => Cow::Borrowed(openid),
        OpenIds::Hash => {
            let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
            let shown = &Sha256::digest(openid)[..6];
            Cow::Owned(shown.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(digit).collect())
        }
    }
}

/// Keeps a line that strangers can cause from filling the log: once every ten seconds, or as often as it was made for.
#[derive(Debug)]
pub struct LogThrottle {
    /// The most lines in ten seconds.
    most: u32,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    since: Option<Instant>,
    written: u32,
    back: u64,
}

impl Default for LogThrottle {
    fn default() -> Self {
        Self::at_most(1)
    }
}

impl LogThrottle {
    /// For a line that may be written so many times in ten seconds.
    pub fn at_most(most: u32) -> Self {
        Self { most, held: Mutex::default() }
    }

    /// Whether to write the line now: how many were held back since the last, or `None` for hold this one back too.
    pub fn due(&self) -> Option<u64> {
        let mut held = self.held.lock();
        if held.since.is_none_or(|since| since.elapsed() >= SELDOM) {
            (held.since, held.written) = (Some(Instant::now()), 0);
        }
        if held.written == self.most {
            held.back += 1;
            return None;
        }
        held.written += 1;
        Some(std::mem::take(&mut held.back))
    }
}

fn lines<S, W>(format: LogFormat, writer: W, ansi: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    match format {
        LogFormat::Json => fmt::layer().event_format(line::Json).with_writer(writer).boxed(),
        LogFormat::Text => fmt::layer().with_ansi(ansi).with_writer(writer).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn json_lines_are_flat_and_a_field_may_be_called_target() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::registry().with(lines(LogFormat::Json, Shared(written.clone()), false));
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
        assert_eq!(openid(OpenIds::Clear, "a\u{9b}2J\nb"), "a\u{fffd}2J\u{fffd}b");
        // SHA-256 of "abc" from FIPS 180-2, appendix B.1.
        assert_eq!(openid(OpenIds::Hash, "abc"), "ba7816bf8f01");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_written_seldom_and_says_how_many_were_held_back() {
        let seldom = LogThrottle::default();
        assert_eq!(seldom.due(), Some(0));
        assert!((0..1000).all(|_| seldom.due().is_none()));
        tokio::time::advance(SELDOM).await;
        assert_eq!(seldom.due(), Some(1000));
        assert_eq!(seldom.due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_may_be_written_some_times_before_it_is_held_back() {
        let seldom = LogThrottle::at_most(3);
        assert_eq!([(); 5].map(|()| seldom.due()), [Some(0), Some(0), Some(0), None, None]);
        tokio::time::advance(SELDOM).await;
        assert_eq!([(); 4].map(|()| seldom.due()), [Some(2), Some(0), Some(0), None]);
    }

    #[derive(Clone)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl fmt::MakeWriter<'_> for Shared {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }
}
