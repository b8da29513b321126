//! A log line as one JSON object.
//!
//! Each is put together in one piece. The JSON of tracing-subscriber goes through a writer in some ninety parts, which
//! took a tenth of a push's time.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::SystemTime;

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What most lines fit into, in bytes.
const USUAL: usize = 512;

/// Writes each event as a JSON object: `timestamp`, `level`, and its fields beside them.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Line { bytes: Vec::with_capacity(USUAL), shown: String::new() };
        #[expect(
            clippy::disallowed_methods,
            reason = "only a reader of the log sees it; and this floor knows no clock"
        )]
        let now = humantime::format_rfc3339_micros(SystemTime::now());
        // Writing to a Vec cannot fail.
        write!(line.bytes, "{{\"timestamp\":\"{now}\",\"level\":\"").ok();
        line.bytes.extend_from_slice(event.metadata().level().as_str().as_bytes());
        line.bytes.push(b'"');
        event.record(&mut line);
        line.bytes.extend_from_slice(b"}\n");
        writer.write_str(std::str::from_utf8(&line.bytes).map_err(|_| fmt::Error)?)
    }
}

/// A line as far as it is written.
struct Line {
    bytes: Vec<u8>,
    /// What a value shows of itself, before it is escaped.
    shown: String,
}

impl Line {
    fn field(&mut self, field: &Field, value: impl Serialize) {
        self.bytes.push(b',');
        push(&mut self.bytes, field.name());
        self.bytes.push(b':');
        push(&mut self.bytes, value);
    }
}

impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut shown = std::mem::take(&mut self.shown);
        shown.clear();
        // Writing to a String cannot fail.
        write!(shown, "{value:?}").ok();
        self.field(field, &shown);
        self.shown = shown;
    }
}

fn push(bytes: &mut Vec<u8>, value: impl Serialize) {
    // Neither strings, numbers nor a Vec can fail to be written.
    serde_json::to_writer(bytes, &value).ok();
}
