//! Holds `openapi.json` to the types: the response of every operation is compared with its schema, in both directions.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use super::tests::Relay;
use crate::clock::UnixMillis;
use crate::queue::{
    AttemptRecord, DeliveryState, Disposition, GivenReply, HeldReply, ReplyUse, SettledReply, Settlement, TakeReply,
};

/// Compares values with schemas, and records which properties of the schemas occurred.
struct Checker {
    document: Value,
    /// Every property in a schema of a response that was checked.
    declared: BTreeSet<String>,
    occurred: BTreeSet<String>,
    values: usize,
}

impl Checker {
    /// The schema itself, or the one that it refers to, with its name for failures.
    fn resolve(&self, schema: &Value, name: &str) -> (Value, String) {
        match schema["$ref"].as_str() {
            Some(reference) => {
                let name = reference.rsplit('/').next().unwrap().to_owned();
                (self.document.pointer(&reference[1..]).unwrap().clone(), name)
            }
            None => (schema.clone(), name.to_owned()),
        }
    }

    fn check(&mut self, schema: &Value, value: &Value, name: &str) {
        self.values += 1;
        let (schema, name) = self.resolve(schema, name);
        if let Some(expected) = schema.get("const") {
            return assert_eq!(value, expected, "{name}");
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::String(one) => vec![one],
            Value::Array(several) => several.iter().map(|one| one.as_str().unwrap()).collect(),
            other => panic!("{name} has the type {other}"),
        };
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_u64() && types.contains(&"integer") => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        assert!(types.contains(&found), "{name} is {value}, not one of {types:?}");
        if let Some(allowed) = schema["enum"].as_array() {
            assert!(allowed.contains(value), "{name} is {value}, not one of {allowed:?}");
        }
        match value {
            Value::Array(items) => {
                assert!(!items.is_empty(), "{name} is empty, so its items are not checked");
                items.iter().for_each(|item| self.check(&schema["items"], item, &name));
            }
            Value::Object(object) => self.check_object(&schema, object, &name),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn check_object(&mut self, schema: &Value, object: &Map<String, Value>, name: &str) {
        assert_eq!(schema["additionalProperties"], false, "{name} allows more properties");
        let properties = schema["properties"].as_object().unwrap();
        self.declared.extend(properties.keys().map(|key| format!("{name}.{key}")));
        for required in schema["required"].as_array().unwrap() {
            assert!(object.contains_key(required.as_str().unwrap()), "{name} lacks {required}: {object:?}");
        }
        for (key, value) in object {
            let property = format!("{name}.{key}");
            let schema = properties.get(key).unwrap_or_else(|| panic!("{property} is not in the document"));
            self.occurred.insert(property.clone());
            self.check(schema, value, &property);
        }
    }
}

/// Every operation with a JSON response: method, path in the document, path of the request, body.
fn operations(event: &str) -> Vec<(&'static str, &'static str, String, Value)> {
    let get = |path: &'static str| ("get", path, path.to_owned(), Value::Null);
    let event = |path: &'static str| path.replace("{id}", event);
    let target = |path: &'static str, body: Value| ("post", path, path.replace("{name}", "crm"), body);
    vec![
        get("/api/status"),
        get("/api/audit"),
        ("get", "/api/events", "/api/events?limit=1".to_owned(), Value::Null),
        ("get", "/api/events/{id}", event("/api/events/{id}"), Value::Null),
        get("/api/targets"),
        get("/api/me"),
        get("/api/checks"),
        ("get", "/api/history", "/api/history?of=total".to_owned(), Value::Null),
        ("get", "/api/history", "/api/history?of=account:shop".to_owned(), Value::Null),
        ("get", "/api/history", "/api/history?of=target:crm".to_owned(), Value::Null),
        ("get", "/api/targets/{name}", "/api/targets/crm".to_owned(), Value::Null),
        target("/api/targets/{name}/probe", Value::Null),
        target("/api/targets/{name}/pause", Value::Null),
        target("/api/targets/{name}/resume", Value::Null),
        target("/api/targets/{name}/retry-dead", Value::Null),
        target("/api/targets/{name}/drop-dead", Value::Null),
        target("/api/targets/{name}/drop-pending", Value::Null),
        target("/api/targets/{name}/redirect", json!({ "to": "quiet" })),
        ("post", "/api/events/replay", "/api/events/replay?all=true".to_owned(), Value::Null),
        ("post", "/api/events/replay", "/api/events/replay?all=true&dry_run=true".to_owned(), Value::Null),
        ("post", "/api/events/{id}/replay", event("/api/events/{id}/replay"), Value::Null),
        ("post", "/api/events/{id}/replay", event("/api/events/{id}/replay"), json!({ "dry_run": true })),
        ("post", "/api/events/forget", "/api/events/forget".to_owned(), json!({ "openid": "o1" })),
        ("post", "/api/store/salvage", "/api/store/salvage".to_owned(), json!({ "dry_run": true })),
        ("post", "/api/reload", "/api/reload".to_owned(), Value::Null),
    ]
}

/// Operations whose response is no JSON, or whose schema is only an outline.
const OTHERS: [&str; 7] = [
    "get /livez",
    "get /readyz",
    "get /readyz/direct",
    "get /metrics",
    "get /api/tail",
    "get /api/openapi.json",
    "get /api/store/salvage",
];

/// A store with one dead letter, whose attempt is recorded, and one pending delivery.
async fn filled() -> (Relay, String) {
    let relay = Relay::new().await;
    relay.state.metrics.account("shop");
    relay.state.metrics.target("crm");
    std::fs::create_dir(relay.folder.path().join("damaged-20261120T080000Z")).unwrap();
    let dead = relay.push("first").await;
    let second = relay.push("second").await;
    let attempt = AttemptRecord {
        number: 1,
        at: UnixMillis::now(),
        duration: std::time::Duration::from_millis(5),
        status: Some(500),
        error: Some("answered 500".to_owned()),
        answer: Some(b"sorry".to_vec()),
    };
    let disposition = Disposition::End(DeliveryState::Dead);
    let settlement = Settlement {
        event: dead,
        target: "crm".into(),
        disposition,
        decided_at: UnixMillis(0),
        attempt: Some(attempt),
        reply: None,
    };
    let given = |event, used| GivenReply {
        event,
        target: "crm".into(),
        attempt: (1, UnixMillis::now()),
        account: "shop".into(),
        user: "o1".to_owned(),
        content: "thello".to_owned(),
        keep: std::time::Duration::from_secs(60),
        used,
    };
    let reply = Some(SettledReply::Given(Box::new(given(dead, ReplyUse::Late))));
    relay.state.queue.settle(Settlement { reply, ..settlement }).await.unwrap();
    let begun = given(second, ReplyUse::Sent(Some(1)));
    relay.state.queue.record_reply(second, String::new(), Some(begun)).await.unwrap();
    let rest = HeldReply { event: second, no: 1, content: "thello".to_owned(), taken: 1 };
    let take = TakeReply { held: rest, until: None, by: dead, reply: String::new(), expires_at: UnixMillis::now() };
    assert!(relay.state.queue.take(take).await.unwrap());
    (relay, dead.to_string())
}

#[tokio::test]
async fn every_json_response_has_the_keys_and_types_of_the_document() {
    let (mut relay, event) = filled().await;
    let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
    let mut checker = Checker { document, declared: BTreeSet::new(), occurred: BTreeSet::new(), values: 0 };
    let mut covered: BTreeSet<String> = OTHERS.map(str::to_owned).into();
    for (method, path, request, body) in operations(&event) {
        covered.insert(format!("{method} {path}"));
        let builder =
            Request::builder().method(method.to_uppercase().as_str()).uri(&request).header("host", "localhost");
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let asked = tokio::spawn(relay.router(None).oneshot(builder.body(body).unwrap()));
        if path == "/api/reload" {
            relay.reloads.recv().await.unwrap().answer.send(Ok(super::tests::report())).unwrap();
        }
        let response = asked.await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{method} {request}");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json", "{request}");
        #[expect(clippy::disallowed_methods, reason = "our own service's response")]
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let schema = &checker.document["paths"][path][method]["responses"]["200"]["content"]["application/json"];
        let schema = schema["schema"].clone();
        checker.check(&schema, &serde_json::from_slice(&text).unwrap(), &format!("{method} {path}"));
    }
    let paths = checker.document["paths"].as_object().unwrap().clone();
    let documented = paths.iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(|method| format!("{method} {path}")).collect::<Vec<_>>()
    });
    assert_eq!(covered, documented.collect(), "an operation is not checked");
    // With PostgreSQL alone; tests/it/postgres_replicas.rs finds them there.
    let of_replicas = |name: &&String| name.ends_with(".replicas") || name.ends_with(".seen");
    let missing = checker.declared.difference(&checker.occurred).filter(|name| !of_replicas(name));
    let missing: Vec<_> = missing.collect();
    assert_eq!(missing, ["Event.sealed"], "declared, but in no response; `sealed` is for what cannot be decrypted");
    assert!(checker.values > 100, "only {} values", checker.values);
}

#[tokio::test]
async fn errors_have_the_documented_shape() {
    let (relay, _) = filled().await;
    let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
    let schema = json!({ "$ref": "#/components/schemas/Error" });
    let mut checker = Checker { document, declared: BTreeSet::new(), occurred: BTreeSet::new(), values: 0 };
    for path in ["/api/events?limit=0", "/api/events/evt_0000000000000001", "/api/nothing"] {
        let (status, text) = relay.ask(Method::GET, path).await;
        assert!(status.is_client_error(), "{path}: {status}");
        checker.check(&schema, &serde_json::from_str(&text).unwrap(), path);
    }
    assert_eq!(checker.values, 6);
}
