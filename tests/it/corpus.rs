//! The corpus of pushes, `tests/data/pushes`: each one, in each mode, reaches targets of each format as expected.
//!
//! The expectations come from other people's code and from `tests/interop/corpus.py`, never from the relay.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::http::exchange;
use crate::support::relay::Relay;
use crate::support::target::{Delivery, Target};
use crate::support::wechat::{Mode, WeChat, encrypt_of};

const MODES: [Mode; 3] = [Mode::Plaintext, Mode::Compatible, Mode::Secure];

/// A push and what each target must receive of it.
struct Case {
    name: String,
    clear: String,
    expected: Value,
}

/// A target and its format; for `wechat`, also its mode.
struct Receiver {
    name: &'static str,
    settings: &'static str,
    check: fn(&Case, &Delivery, Mode) -> Result<(), String>,
}

const RECEIVERS: [Receiver; 6] = [
    Receiver { name: "plain", settings: "format = \"wechat\"\nmode = \"plaintext\"", check: wechat_in_clear },
    Receiver { name: "json", settings: "format = \"json\"", check: json_form },
    Receiver { name: "events", settings: "format = \"cloudevents\"", check: cloudevents_form },
    Receiver { name: "authing", settings: "role = \"identity\"\nformat = \"authing-json\"", check: authing_form },
    Receiver { name: "compatible", settings: "format = \"wechat\"\nmode = \"compatible\"", check: wechat_compatible },
    Receiver { name: "secure", settings: "format = \"wechat\"\nmode = \"secure\"", check: wechat_secure },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_push_of_the_corpus_reaches_targets_of_every_format_as_expected() {
    let cases = cases();
    let (mut config, mut targets) = (String::new(), Vec::new());
    for mode in MODES {
        config += &wechat(mode).account_named(mode.name(), &path(mode));
        config += &format!("[[accounts.{}.routes]]\notherwise = true\nto = {:?}\n", mode.name(), receivers(mode));
    }
    for receiver in &RECEIVERS {
        let target = Target::start().await;
        config += &target.config(receiver.name, receiver.settings);
        targets.push(target);
    }
    let relay = Relay::start(config).await;
    push_all(&relay, &cases).await;

    let mut wrong = Vec::new();
    // The decrypted text identifies the push of an event.
    let due = |receiver: &str| MODES.iter().filter(|mode| receivers(**mode).contains(&receiver)).count() * cases.len();
    let by_text: BTreeMap<_, _> = cases.iter().map(|case| (case.clear.as_bytes(), case)).collect();
    let arrived = targets[0].wait_for(due("plain")).await;
    let known = |delivery: &Delivery| by_text.get(&delivery.body[..]).copied();
    let events: BTreeMap<_, _> =
        arrived.iter().filter_map(|sent| Some((sent.header("wxrelay-event-id"), known(sent)?))).collect();
    assert_eq!(events.len(), due("plain"), "pushes that arrive byte for byte");
    for (receiver, target) in RECEIVERS.iter().zip(&targets) {
        let arrived = target.wait_for(due(receiver.name)).await;
        assert_eq!(arrived.len(), due(receiver.name), "deliveries at {}", receiver.name);
        for delivery in &arrived {
            let case = events[delivery.header("wxrelay-event-id")];
            let account = delivery.header("wxrelay-account");
            let mode = MODES.into_iter().find(|mode| mode.name() == account).expect("an account of ours");
            if let Err(difference) = (receiver.check)(case, delivery, mode) {
                wrong.push(format!("{} for {} from {account}: {difference}", case.name, receiver.name));
            }
        }
    }
    let shown = wrong.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} deliveries are not as expected:\n{shown}", wrong.len());
}

#[test]
fn every_push_has_its_expectations_and_every_expectation_its_push() {
    let stems = |found: &dyn Fn(&str) -> Option<&str>| -> BTreeSet<String> {
        let names = files().into_iter().map(|path| path.file_name().expect("a file").to_string_lossy().into_owned());
        names.filter_map(|name| found(&name).map(str::to_owned)).collect()
    };
    let pushes = stems(&push_name);
    let expectations = stems(&|name| name.strip_suffix(".expected.json"));
    let alone: Vec<_> = pushes.symmetric_difference(&expectations).collect();
    assert!(alone.is_empty(), "a push without expectations, or the reverse (README.md there): {alone:?}");
    assert!(pushes.len() >= 100, "only {} pushes", pushes.len());
    let texts: BTreeSet<_> = cases().into_iter().map(|case| case.clear).collect();
    assert_eq!(texts.len(), pushes.len(), "no push is another's twin, or the relay would take it for a retry");
}

#[test]
fn every_known_msg_type_and_event_and_three_unknown_ones_are_in_the_corpus() {
    let listed = catalogue();
    assert!(listed.len() > 90, "only {} names in the catalogue", listed.len());
    let mut found = BTreeSet::new();
    for case in cases() {
        let json = &case.expected["json"];
        for (kind, key) in [("MsgType", "msg_type"), ("Event", "event")] {
            found.extend(json[key].as_str().map(|name| (kind, name.to_owned())));
        }
    }
    let missing: Vec<_> = listed.difference(&found).collect();
    assert!(missing.is_empty(), "without a push: {missing:?}");
    let unknown: Vec<_> = found.difference(&listed).collect();
    assert!(unknown.len() >= 3, "the unknown ones: {unknown:?}");
}

/// The entries of `catalogue.txt`.
fn catalogue() -> BTreeSet<(&'static str, String)> {
    let text = fs::read_to_string(folder().join("catalogue.txt")).expect("the catalogue can be read");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &str| match line.split_once(' ') {
        Some(("MsgType", name)) => ("MsgType", name.to_owned()),
        Some(("Event", name)) => ("Event", name.to_owned()),
        _ => panic!("neither MsgType nor Event: {line}"),
    };
    lines.map(entry).collect()
}

/// Pushes everything at once, in all three modes.
async fn push_all(relay: &Relay, cases: &[Case]) {
    let mut pushing = JoinSet::new();
    for mode in MODES {
        let wechat = wechat(mode);
        for case in cases {
            let request = wechat.push(&case.clear).request(&path(mode));
            let (address, name) = (relay.push.clone(), format!("{} in {}", case.name, mode.name()));
            pushing.spawn(async move { (name, exchange(&address, &request).await) });
        }
    }
    for (name, answer) in pushing.join_all().await {
        assert_eq!((answer.status, answer.text()), (200, "success"), "{name}");
    }
}

/// The targets of the account of a mode: the first two, whose requests depend on the mode; in plaintext mode all.
fn receivers(mode: Mode) -> Vec<&'static str> {
    let all = RECEIVERS.iter().map(|receiver| receiver.name);
    if mode == Mode::Plaintext { all.collect() } else { all.take(2).collect() }
}

/// The account of a mode. Each has an AppID of its own, so that a push of one is no retry of another's.
fn wechat(mode: Mode) -> WeChat {
    WeChat { app_id: format!("wx{:016x}", mode as u8), ..WeChat::new(mode) }
}

fn path(mode: Mode) -> String {
    format!("/wx/{}", mode.name())
}

fn json_form(case: &Case, delivery: &Delivery, mode: Mode) -> Result<(), String> {
    let mut body = delivery.json();
    same(&body.to_string(), delivery.text())?;
    same(body["id"].as_str().unwrap_or_default(), delivery.header("wxrelay-event-id"))?;
    same(body["account"].as_str().unwrap_or_default(), mode.name())?;
    same(body["app_id"].as_str().unwrap_or_default(), &wechat(mode).app_id)?;
    same(body["mode"].as_str().unwrap_or_default(), mode.name())?;
    for word in ["ACCOUNT", "APP_ID", "MODE", "RECEIVED_AT"] {
        body[word.to_lowercase()] = json!(word);
    }
    body["id"] = json!("EVENT_ID");
    same(&body.to_string(), &case.expected["json"].to_string())
}

fn cloudevents_form(case: &Case, delivery: &Delivery, mode: Mode) -> Result<(), String> {
    let mut body = delivery.json();
    same(&body.to_string(), delivery.text())?;
    same(body["id"].as_str().unwrap_or_default(), delivery.header("wxrelay-event-id"))?;
    same(body["source"].as_str().unwrap_or_default(), &format!("/accounts/{}", mode.name()))?;
    for (key, word) in [("id", "EVENT_ID"), ("source", "/accounts/ACCOUNT"), ("time", "RECEIVED_AT")] {
        body[key] = json!(word);
    }
    same(&body.to_string(), &case.expected["cloudevents"].to_string())
}

fn authing_form(case: &Case, delivery: &Delivery, _: Mode) -> Result<(), String> {
    same(delivery.text(), &case.expected["authing-json"].to_string())
}

fn wechat_in_clear(case: &Case, delivery: &Delivery, _: Mode) -> Result<(), String> {
    same(&masked(delivery), case.expected["wechat"]["plaintext_query"].as_str().unwrap_or_default())?;
    same(delivery.text(), &case.clear)
}

fn wechat_compatible(case: &Case, delivery: &Delivery, _: Mode) -> Result<(), String> {
    sealed(case, delivery, Mode::Compatible, "compatible_body")
}

fn wechat_secure(case: &Case, delivery: &Delivery, _: Mode) -> Result<(), String> {
    sealed(case, delivery, Mode::Secure, "secure_body")
}

fn sealed(case: &Case, delivery: &Delivery, mode: Mode, key: &str) -> Result<(), String> {
    let (expected, body) = (&case.expected["wechat"], delivery.text());
    same(&masked(delivery), expected["sealed_query"].as_str().unwrap_or_default())?;
    let lines = expected[key].as_array().into_iter().flatten();
    let lines: Vec<_> = lines.map(|line| line.as_str().unwrap_or_default()).collect();
    same(&body.replacen(&encrypt_of(body).ok_or("no Encrypt")?, "ENCRYPT", 1), &lines.join("\n"))?;
    let query = delivery.query.as_deref().unwrap_or_default();
    same(&WeChat { mode, ..wechat(Mode::Plaintext) }.open_push(query, body), &case.clear)
}

/// The query, with names in place of the parts that differ at every attempt.
fn masked(delivery: &Delivery) -> String {
    let query = delivery.query.as_deref().unwrap_or_default();
    let mask = |pair: &str| match pair.split_once('=') {
        Some((name @ ("signature" | "timestamp" | "nonce" | "msg_signature"), _)) => {
            format!("{name}={}", name.to_uppercase())
        }
        _ => pair.to_owned(),
    };
    query.split('&').map(mask).collect::<Vec<_>>().join("&")
}

/// Compares two texts; the error shows the actual one from shortly before the first difference.
fn same(found: &str, expected: &str) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let alike = found.chars().zip(expected.chars()).take_while(|(found, expected)| found == expected).count();
    let near = |text: &str| text.chars().skip(alike.saturating_sub(40)).take(160).collect::<String>();
    Err(format!("\n  found    ...{:?}\n  expected ...{:?}", near(found), near(expected)))
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in files() {
        let name = path.file_name().expect("a file").to_string_lossy();
        let Some(stem) = push_name(&name) else { continue };
        let expected = path.with_file_name(format!("{stem}.expected.json"));
        let expected = fs::read(&expected).unwrap_or_else(|error| panic!("{}: {error}", expected.display()));
        cases.push(Case {
            name: name.clone().into_owned(),
            clear: fs::read_to_string(&path).expect("a push is UTF-8"),
            expected: serde_json::from_slice(&expected).unwrap_or_else(|error| panic!("{stem}: {error}")),
        });
    }
    cases
}

/// A push's name without the extension.
fn push_name(file: &str) -> Option<&str> {
    let json = file.strip_suffix(".json").filter(|_| !file.ends_with(".expected.json"));
    file.strip_suffix(".xml").or(json)
}

fn files() -> Vec<PathBuf> {
    let entries = fs::read_dir(folder()).expect("the corpus can be read");
    entries.map(|entry| entry.expect("a file of it").path()).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pushes")
}
