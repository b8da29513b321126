//! Traces: one per event, from its push through every attempt into the handler. A bad collector costs only spans.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use rustix::process::Signal;

use crate::support::command::free_address;
use crate::support::eventually;
use crate::support::http::{Connection, exchange, post};
use crate::support::relay::{Relay, Setup};
use crate::support::storm::Storm;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{PATH, WeChat, event, text};
use crate::tls::Certificate;

const METRIC: &str = "wxrelay_spans_total";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test]
async fn a_push_its_failed_attempt_and_the_next_are_one_trace_that_the_handler_gets() {
    let (wechat, crm, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    crm.script([Reaction::Answer(Reply::status(500))]);
    let relay = Relay::start(telemetry(&collector, "") + &shop(&wechat, &crm, "retry = [\"20ms\"]")).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    let spans = wait_for(&collector, 3).await;
    let (push, attempts) = (named(&spans, "push").remove(0), named(&spans, "attempt"));

    assert_eq!((push.parent.as_str(), push.kind, &push.error), ("", SpanKind::Server, &None), "{push:?}");
    let event = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    for (key, value) in [
        ("wxrelay.event_id", event.as_str()),
        ("wxrelay.account", "shop"),
        ("wxrelay.kind", "text"),
        ("wxrelay.result", "accepted"),
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("service.name", "wxrelay"),
    ] {
        assert_eq!(push.attributes[key], value, "{key}: {push:?}");
    }
    assert!(push.attributes["wxrelay.openid"].len() == 12 && push.attributes.contains_key("wxrelay.stamp"), "{push:?}");

    let output: Vec<_> = crm.deliveries().iter().map(|sent| sent.header("traceparent").to_owned()).collect();
    assert_eq!(attempts.len(), 2);
    for (attempt, output) in attempts.iter().zip(&output) {
        assert_eq!((&attempt.trace, &attempt.parent), (&push.trace, &push.span), "{attempt:?}");
        assert_eq!(*output, format!("00-{}-{}-01", attempt.trace, attempt.span), "the handler gets the attempt's span");
        assert_eq!((attempt.kind, &attempt.attributes["wxrelay.target"]), (SpanKind::Client, &"crm".to_owned()));
        assert!(push.begun <= attempt.begun && attempt.begun < attempt.ended, "{push:?} {attempt:?}");
    }
    let outcome = |attempt: &Span| {
        ["wxrelay.attempt", "wxrelay.outcome", "http.response.status_code"].map(|key| attempt.attributes[key].clone())
    };
    assert_eq!(outcome(&attempts[0]), ["1", "retry", "500"]);
    assert_eq!(
        (attempts[0].error.as_deref(), attempts[0].attributes["error.type"].as_str()),
        (Some("answered 500"), "500")
    );
    assert_eq!(outcome(&attempts[1]), ["2", "delivered", "200"]);
    assert_eq!((attempts[1].error.as_deref(), attempts[1].attributes.get("error.type")), (None, None));
}

#[tokio::test]
async fn an_attempt_after_a_kill_is_in_the_same_trace_under_the_same_push() {
    let (wechat, crm, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    crm.then(Reaction::Close);
    let retry = format!("retry = [{}]", ["\"1s\""; 60].join(", "));
    let mut relay = Relay::start(telemetry(&collector, "") + &shop(&wechat, &crm, &retry)).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    let before = wait_for(&collector, 2).await;
    relay.kill().await;
    crm.then(Reaction::Answer(Reply::status(200)));
    relay.restart().await;
    relay.audited("delivered", 1).await;
    let delivered = eventually("the span of the attempt that delivers", async || {
        spans(&collector)
            .into_iter()
            .find(|span| span.attributes.get("wxrelay.outcome").is_some_and(|it| it == "delivered"))
    })
    .await;
    let (push, failed) = (&named(&before, "push")[0], &named(&before, "attempt")[0]);
    for attempt in [failed, &delivered] {
        assert_eq!((&attempt.trace, &attempt.parent), (&push.trace, &push.span), "{attempt:?}");
    }
    assert_eq!(
        (failed.attributes["error.type"].as_str(), failed.attributes.get("http.response.status_code")),
        ("broken", None)
    );
    assert_ne!(failed.span, delivered.span);
}

#[tokio::test]
async fn a_trace_that_a_push_came_with_is_kept_and_one_that_is_not_recorded_leaves_no_span() {
    let (wechat, crm, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    let relay = Relay::start(telemetry(&collector, "") + &shop(&wechat, &crm, "")).await;
    for (trace, flags) in [("11f92f3577b34da6a3ce929d0e0e4736", "00"), (TRACE, "01")] {
        let request = String::from_utf8(wechat.push(&text("o1", trace)).request(PATH)).expect("text");
        let request = request.replace("Accept: */*", &format!("traceparent: 00-{trace}-{CALLER}-{flags}"));
        assert_eq!(exchange(&relay.push, request.as_bytes()).await.status, 200);
        relay.audited("pending", 0).await;
    }
    assert!(crm.delivery(0).await.header("traceparent").ends_with("-00"), "not recorded stays so");
    let spans = wait_for(&collector, 2).await;
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:?}");
    let (push, attempt) = (&named(&spans, "push")[0], &named(&spans, "attempt")[0]);
    assert_eq!((push.parent.as_str(), push.flags), (CALLER, 0x301), "recorded, with a parent elsewhere");
    assert_eq!((&attempt.parent, attempt.flags), (&push.span, 0x101), "recorded, with a parent here");
}

#[tokio::test]
async fn a_further_try_is_a_span_under_the_first_and_what_is_refused_is_none() {
    let (wechat, crm, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    let relay = Relay::start(telemetry(&collector, "") + &shop(&wechat, &crm, "")).await;
    let stranger = WeChat { token: "guessed".to_owned(), ..wechat.clone() };
    assert_eq!(stranger.push(&text("o1", "forged")).send(&relay.push).await.status, 403);
    let push = wechat.push(&text("o1", "hello"));
    for _ in 0..2 {
        assert_eq!(push.send(&relay.push).await.status, 200);
    }
    let spans = wait_for(&collector, 3).await;
    let pushes = named(&spans, "push");
    let result = |span: &Span| span.attributes["wxrelay.result"].clone();
    assert_eq!(pushes.iter().map(result).collect::<Vec<_>>(), ["accepted", "duplicate"]);
    assert_eq!((&pushes[1].trace, &pushes[1].parent), (&pushes[0].trace, &pushes[0].span));
    assert_eq!(pushes[1].attributes["wxrelay.event_id"], pushes[0].attributes["wxrelay.event_id"]);
    assert_eq!(named(&spans, "attempt").len(), 1, "{spans:?}");
}

#[tokio::test]
async fn a_try_that_joins_the_first_is_a_child_of_it_and_so_is_an_abandoned_one() {
    let (wechat, crm, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    crm.script([Reaction::Hold(Reply::status(200))]);
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";
    let relay = Relay::start(telemetry(&collector, "") + &wechat.account() + route + &crm.config("crm", "")).await;
    let push = wechat.push(&text("o1", "hello"));
    let mut gone = Connection::open(&relay.push).await.expect("somebody listens");
    gone.write(&push.request(PATH)).await.expect("the request can be sent");
    crm.wait_for(1).await;
    let joining = async {
        let joined = async || (relay.metric("wxrelay_duplicates_total", &[]).await > 0.0).then_some(());
        eventually("the second try is there", joined).await;
        gone.reset();
        let hung_up =
            async || (relay.metric("wxrelay_pushes_total", &[("result", "hung_up")]).await > 0.0).then_some(());
        eventually("the first is given up", hung_up).await;
        crm.release(1);
    };
    let (answer, ()) = tokio::join!(push.send(&relay.push), joining);
    assert_eq!(answer.status, 200);
    let spans = wait_for(&collector, 3).await;
    let (pushes, attempt) = (named(&spans, "push"), &named(&spans, "attempt")[0]);
    let result = |span: &Span| (span.attributes["wxrelay.result"].clone(), span.attributes.get("error.type").cloned());
    assert_eq!(result(&pushes[0]), ("hung_up".to_owned(), Some("hung_up".to_owned())));
    assert_eq!(result(&pushes[1]), ("duplicate".to_owned(), None));
    for under in [&pushes[1], attempt] {
        assert_eq!((&under.trace, &under.parent), (&pushes[0].trace, &pushes[0].span), "{under:?}");
        assert_eq!(under.attributes["wxrelay.event_id"], pushes[0].attributes["wxrelay.event_id"]);
    }
}

#[tokio::test]
async fn an_expired_delivery_ends_its_trace_with_an_error() {
    let (wechat, login, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    login.then(Reaction::Answer(Reply::status(503)));
    let settings = "role = \"identity\"\nretry = [\"10ms\"]\nexpire_after = \"500ms\"\nrate = \"1/s\"";
    let relay = Relay::start(telemetry(&collector, "") + &shop(&wechat, &login, settings)).await;
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    let expired = async || Some(spans(&collector)).filter(|spans| spans.iter().any(|span| span.name == "expiry"));
    let spans = eventually("a span of the expiry", expired).await;
    let (push, expiry) = (&named(&spans, "push")[0], &named(&spans, "expiry")[0]);
    assert_eq!((&expiry.parent, expiry.kind), (&push.span, SpanKind::Internal));
    assert_eq!(expiry.attributes["error.type"], "expired");
    assert!(expiry.error.is_some() && !expiry.attributes.contains_key("http.request.method"), "{expiry:?}");
}

#[tokio::test]
async fn the_collector_gets_protobuf_at_the_usual_path_with_the_operators_headers() {
    let (wechat, crm, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    let base = collector.url().replace("/hook", "");
    let telemetry = format!(
        "[telemetry]\notlp = \"{base}\"\nheaders = {{ authorization = \"Bearer rare\" }}\nservice_name = \"wechat-prod\"\n"
    );
    let relay = Relay::start(telemetry + &shop(&wechat, &crm, "")).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    let span = wait_for(&collector, 1).await.remove(0);
    assert_eq!(span.attributes["service.name"], "wechat-prod");
    let request = collector.delivery(0).await;
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/traces"));
    assert_eq!(request.header("content-type"), "application/x-protobuf");
    assert_eq!(request.header("authorization"), "Bearer rare");
    assert!(request.header("user-agent").starts_with("wxrelay/"));
}

#[tokio::test]
async fn an_https_collector_gets_spans_only_if_the_system_trusts_its_authority() {
    let (wechat, crm, files) = (WeChat::secure(), Target::start().await, Certificate::new());
    let collector = Target::secured(files.acceptor()).await;
    let setup = || Setup::new(telemetry(&collector, "") + &shop(&wechat, &crm, ""));
    let relay = setup().env("SSL_CERT_FILE", Certificate::new().cert()).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    let about_it = |line: &serde_json::Value| line["message"].to_string().contains("telemetry.otlp");
    let output = relay.log("a line about the collector", about_it).await;
    assert!(output["error"].to_string().contains("certificate"), "{output}");
    assert!(collector.deliveries().is_empty());
    let relay = setup().env("SSL_CERT_FILE", files.cert()).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    wait_for(&collector, 2).await;
}

#[tokio::test]
async fn a_stop_sends_the_spans_that_are_there() {
    let (wechat, crm, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    let mut relay = Relay::start(telemetry(&collector, "") + &shop(&wechat, &crm, "")).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.stop().await;
    let sent = spans(&collector);
    assert_eq!((named(&sent, "push").len(), named(&sent, "attempt").len()), (1, 1), "{sent:?}");
}

#[tokio::test]
async fn a_busy_collector_is_sent_the_same_spans_again_and_one_that_refuses_is_not() {
    let (wechat, crm, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "no".to_owned() };
    let partial = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    let protobuf = |body| Reaction::Answer(Reply::body("application/x-protobuf", body));
    collector.script([Reaction::Answer(Reply::status(503)), protobuf(partial), Reaction::Answer(Reply::status(400))]);
    let relay = Relay::start(telemetry(&collector, "") + &shop(&wechat, &crm, "")).await;
    let counted = async |result, count: f64| {
        let what = format!("{count} spans {result}");
        let reached = async || (relay.metric(METRIC, &[("result", result)]).await >= count).then_some(());
        eventually(&what, reached).await;
    };
    assert_eq!(relay.samples(METRIC).await.len(), 3, "at zero from the start");
    relay.accept(&wechat, &text("o1", "again")).await;
    counted("exported", 1.0).await;
    let bodies: Vec<_> = collector.deliveries().into_iter().map(|sent| sent.body).collect();
    assert_eq!(bodies[0], bodies[1], "the same spans, once more");
    counted("failed", 1.0).await;
    relay
        .log("a line about the collector", |line| {
            line["level"] == "WARN" && line["message"].to_string().contains("telemetry.otlp")
        })
        .await;
    relay.accept(&wechat, &text("o1", "in vain")).await;
    counted("failed", 2.0).await;
}

#[tokio::test]
async fn a_collector_that_hangs_costs_spans_and_nothing_else() {
    let (wechat, crm, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    collector.then(Reaction::Hang);
    let targets: String = (0..12).map(|number| crm.config(&format!("crm{number}"), "")).collect();
    let setup = Setup::new(telemetry(&collector, "") + &wechat.account() + &targets).server("drain = \"3s\"");
    let mut relay = setup.log("level = \"warn,wxrelay::app=info\"").start().await;
    let storm = Storm::begin(&relay.push, &wechat);
    // More than the buffer holds: 13 spans per push.
    storm.answered(450).await;
    assert_eq!(storm.failures(), Vec::<String>::new(), "every push is answered 200 at its first try");
    let (pushed, _) = storm.end().await;
    relay.audited("delivered", 12 * pushed.len() as u64).await;
    let dropped = async || (relay.metric(METRIC, &[("result", "dropped")]).await > 0.0).then_some(());
    eventually("spans without room are counted", dropped).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_collector_that_is_not_there_harms_nothing() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let telemetry = format!("[telemetry]\notlp = \"http://{}\"\n", free_address());
    let mut relay = Relay::start(telemetry + &shop(&wechat, &crm, "")).await;
    for _ in 0..20 {
        relay.accept(&wechat, &text("o1", "hello")).await;
    }
    relay.audited("delivered", 20).await;
    let line = relay.log("a line about it", |line| line["message"].to_string().contains("telemetry.otlp")).await;
    assert!(line["error"].as_str().is_some_and(|error| error.contains("can't connect")), "{line}");
    relay.stop().await;
}

#[tokio::test]
async fn without_a_collector_there_are_no_spans_and_a_change_of_it_wants_a_restart() {
    let (wechat, crm, collector) = (WeChat::secure(), Target::start().await, Target::start().await);
    let mut relay = Relay::start(shop(&wechat, &crm, "")).await;
    assert_eq!(relay.samples(METRIC).await, Vec::new());
    relay.configure(telemetry(&collector, "") + &shop(&wechat, &crm, ""));
    assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
    relay.log("a line about the restart", |line| line["key"] == "telemetry.otlp" && line["level"] == "WARN").await;
    relay.signal(Signal::TERM);
    assert_eq!(relay.end().await, Some(0));
    relay.restart().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    wait_for(&collector, 2).await;
}

fn telemetry(collector: &Target, lines: &str) -> String {
    format!("[telemetry]\notlp = \"{}\"\n{lines}\n", collector.url())
}

fn shop(wechat: &WeChat, crm: &Target, settings: &str) -> String {
    wechat.account() + &crm.config("crm", settings)
}

/// A span as the collector sees it; ids in hex.
#[derive(Clone, Debug)]
struct Span {
    name: String,
    kind: SpanKind,
    trace: String,
    span: String,
    parent: String,
    flags: u32,
    begun: u64,
    ended: u64,
    error: Option<String>,
    /// The attributes of the resource too.
    attributes: BTreeMap<String, String>,
}

/// Waits until the collector has that many; returns all of them.
async fn wait_for(collector: &Target, count: usize) -> Vec<Span> {
    eventually(&format!("{count} spans"), async || Some(spans(collector)).filter(|spans| spans.len() >= count)).await
}

/// The spans of that name, in the order of their start.
fn named(spans: &[Span], name: &str) -> Vec<Span> {
    let mut found: Vec<_> = spans.iter().filter(|span| span.name == name).cloned().collect();
    found.sort_by_key(|span| span.begun);
    found
}

fn spans(collector: &Target) -> Vec<Span> {
    let mut spans = Vec::new();
    for sent in collector.deliveries() {
        let request = ExportTraceServiceRequest::decode(sent.body).expect("OTLP's protobuf");
        for part in request.resource_spans {
            let resource = part.resource.expect("the resource says who traces").attributes;
            for span in part.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Span {
                    kind: span.kind(),
                    trace: hex(&span.trace_id),
                    span: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    flags: span.flags,
                    begun: span.start_time_unix_nano,
                    ended: span.end_time_unix_nano,
                    error: span.status.filter(|status| status.code() == StatusCode::Error).map(|status| status.message),
                    attributes: resource.iter().cloned().chain(span.attributes).map(attribute).collect(),
                    name: span.name,
                });
            }
        }
    }
    spans
}

fn attribute(KeyValue { key, value, .. }: KeyValue) -> (String, String) {
    let value = match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key} is {other:?}"),
    };
    (key, value)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
