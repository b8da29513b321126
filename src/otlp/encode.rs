//! Encodes spans in OTLP (opentelemetry-proto, trace.proto). Attributes follow OpenTelemetry's semantic conventions
//! where they exist; the others are our own.
//!
//! Invariant: a span contains nothing that the log does not contain. Pure.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as proto;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use crate::tail::{Activity, AttemptActivity, PushActivity, Span, TracedKind};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// W3C's trace flag `sampled`, and OTLP's bit that makes [`PARENT_IS_REMOTE`] valid.
const FLAGS: u32 = 0x01 | 0x100;
const PARENT_IS_REMOTE: u32 = 0x200;

pub(super) fn request(spans: Vec<Span>, service_name: &str) -> ExportTraceServiceRequest {
    let mut resource = Attributes::default();
    resource.text("service.name", service_name);
    resource.text("service.version", VERSION);
    let scope = InstrumentationScope { name: "wxrelay".to_owned(), version: VERSION.to_owned(), ..Default::default() };
    let scope_spans =
        proto::ScopeSpans { scope: Some(scope), spans: spans.into_iter().map(span).collect(), ..Default::default() };
    let resource_spans = proto::ResourceSpans {
        resource: Some(Resource { attributes: resource.0, ..Default::default() }),
        scope_spans: vec![scope_spans],
        ..Default::default()
    };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
}

fn span(span: Span) -> proto::Span {
    let mut attributes = Attributes::default();
    attributes.text("wxrelay.event_id", span.event.to_string());
    let (name, kind) = match span.kind {
        TracedKind::Push => ("push", SpanKind::Server),
        TracedKind::Attempt => ("attempt", SpanKind::Client),
        TracedKind::Expiry => ("expiry", SpanKind::Internal),
    };
    let error = match span.activity {
        Activity::Push(push) => describe_push(&mut attributes, push),
        Activity::Attempt(attempt) => describe_attempt(&mut attributes, attempt),
    };
    if kind != SpanKind::Internal {
        attributes.text("http.request.method", "POST");
    }
    if let Some(status) = span.status {
        attributes.number("http.response.status_code", status.into());
    }
    let failed = span.failure.is_some();
    if let Some(failure) = span.failure {
        attributes.text("error.type", failure);
    }
    let status = failed.then(|| proto::Status { message: error.unwrap_or_default(), code: StatusCode::Error.into() });
    let context = span.context;
    proto::Span {
        trace_id: context.trace.to_be_bytes().to_vec(),
        span_id: context.span.0.to_be_bytes().to_vec(),
        parent_span_id: context.parent.map_or_else(Vec::new, |parent| parent.0.to_be_bytes().to_vec()),
        flags: FLAGS | if context.remote { PARENT_IS_REMOTE } else { 0 },
        name: name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: span.started.0,
        end_time_unix_nano: span.ended.0,
        attributes: attributes.0,
        status,
        ..Default::default()
    }
}

/// Only attempts have an error text.
fn describe_push(attributes: &mut Attributes, push: PushActivity) -> Option<String> {
    attributes.text("wxrelay.account", &*push.account);
    attributes.text("wxrelay.kind", push.kind);
    attributes.text("wxrelay.result", push.result);
    attributes.maybe_text("wxrelay.openid", push.openid);
    attributes.maybe_number("wxrelay.stamp", push.stamp);
    None
}

fn describe_attempt(attributes: &mut Attributes, attempt: AttemptActivity) -> Option<String> {
    attributes.text("wxrelay.account", &*attempt.account);
    attributes.text("wxrelay.kind", attempt.kind);
    attributes.text("wxrelay.target", &*attempt.target);
    attributes.number("wxrelay.attempt", attempt.attempt.into());
    attributes.text("wxrelay.outcome", attempt.outcome);
    attributes.text("wxrelay.openid", attempt.openid);
    attributes.maybe_number("wxrelay.stamp", attempt.stamp);
    // Also for an attempt that was delivered and whose reply was unusable.
    attributes.maybe_text("wxrelay.error", attempt.error.clone());
    attempt.error
}

#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, key: &str, value: impl Into<String>) {
        self.push(key, Value::StringValue(value.into()));
    }

    fn maybe_text(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn number(&mut self, key: &str, value: i64) {
        self.push(key, Value::IntValue(value));
    }

    fn maybe_number(&mut self, key: &str, value: Option<i64>) {
        if let Some(value) = value {
            self.number(key, value);
        }
    }

    fn push(&mut self, key: &str, value: Value) {
        self.0.push(KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
            ..Default::default()
        });
    }
}
