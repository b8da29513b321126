//! No secret in output: no token, key, query, message or clear OpenID in logs, errors, metrics and traces.

use rustix::process::Signal;

use crate::support::command::free_address;
use crate::support::http::exchange;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{PATH, Push, WeChat, event, now, parameter, text};

const OPENID: &str = "oSecretPerson0123456789abcdef";
const CONTENT: &str = "a confession that nobody else shall read";

#[tokio::test]
async fn logs_and_metrics_hold_no_secret() {
    let wechat = WeChat { token: "AVeryRareTokenIndeed".to_owned(), ..WeChat::secure() };
    let crm = Target::start().await;
    crm.script([Reaction::Answer(Reply { status: 500, ..Reply::xml(CONTENT) }), Reaction::Close]);
    let settings =
        "retry = [\"20ms\", \"20ms\", \"20ms\"]\nsecret = \"whsec_c29tZSBzaWduaW5nIGtleSBvZiAzMiBieXRlcy4uLg==\"";
    let collector = Target::start().await;
    let telemetry = format!("[telemetry]\notlp = \"{}\"\n", collector.url());
    let mut relay = Relay::start(telemetry + &wechat.account() + &crm.config("crm", settings)).await;

    let good = wechat.push(&text(OPENID, CONTENT));
    assert_eq!(good.send(&relay.push).await.status, 200);
    relay.accept(&wechat, &event(OPENID, "CLICK", "menu")).await;
    let stranger = WeChat { token: "guessed".to_owned(), ..wechat.clone() }.push(&text(OPENID, CONTENT));
    assert_eq!(stranger.send(&relay.push).await.status, 403);
    let broken = Push { body: format!("<xml>{CONTENT}").into_bytes(), ..good.clone() };
    assert_eq!(broken.send(&relay.push).await.status, 400);
    let lost = exchange(&relay.push, &good.request(&format!("{PATH}/lost"))).await;
    assert_eq!(lost.status, 404);
    relay.audited("delivered", 2).await;
    relay.log("a line per push", |line| line["message"] == "push" && line["account"] == "shop").await;
    relay.log("a line per attempt", |line| line["message"] == "attempt" && line["target"] == "crm").await;

    let signature = parameter(&good.query, "msg_signature").expect("a sealed push has it");
    let printed = relay.lines().join("\n") + relay.get("/metrics").await.text() + relay.get("/api/status").await.text();
    relay.stop().await;
    let traced: Vec<_> =
        collector.deliveries().iter().map(|sent| String::from_utf8_lossy(&sent.body).into_owned()).collect();
    // Protobuf holds texts as they are.
    assert!(traced.concat().contains("answered 500"), "the spans are there: {traced:?}");
    let printed = printed + "\n" + &traced.concat();
    for secret in [&wechat.token, &wechat.aes_key, OPENID, CONTENT, signature, "c29tZSBzaWduaW5nIGtleSBvZi"] {
        let line = printed.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} got out");
    }
}

#[tokio::test]
async fn a_whole_run_at_trace_level_and_every_command_hold_no_secret_in_either_format() {
    for format in ["json", "text"] {
        let wechat = WeChat { token: "AVeryRareTokenIndeed".to_owned(), ..WeChat::secure() };
        let crm = Target::start().await;
        crm.script([Reaction::Answer(Reply { status: 500, ..Reply::xml(CONTENT) })]);
        let settings = "retry = [\"20ms\"]\nsecret = \"whsec_c29tZSBzaWduaW5nIGtleSBvZiAzMiBieXRlcy4uLg==\"\n\
                        headers = { x-api-key = \"ARareHeaderSecret\" }";
        let collector = Target::start().await;
        let telemetry = format!(
            "[telemetry]\notlp = \"{}/ARareUrlSecret\"\nheaders = {{ authorization = \"ARareCollectorSecret\" }}\n",
            collector.url()
        );
        let body = telemetry + &wechat.account() + &crm.config("crm", settings);
        let mut setup = Setup::new(body).admin("token = \"ARareAdminToken\"").admin_at(free_address());
        setup = setup.log("level = \"trace\"\nformat = \"json\"");
        let mut relay = setup.start().await;
        relay.log_settings(&format!("level = \"trace\"\nformat = \"{format}\""));
        relay.stop().await;
        let running = relay.spawn(&["serve"]);
        let address = running.find("push address", push_address).await;
        running.find("ready", |line| line.contains("ready").then_some(())).await;
        let good = wechat.push(&text(OPENID, CONTENT));
        assert_eq!(good.send(&address).await.status, 200);
        let stranger = WeChat { token: "guessed".to_owned(), ..wechat.clone() }.push(&text(OPENID, CONTENT));
        assert_eq!(stranger.send(&address).await.status, 403);
        let broken = Push { body: format!("<xml>{CONTENT}").into_bytes(), ..good.clone() };
        assert_eq!(broken.send(&address).await.status, 400);
        let echostr = "ARareEchostr4711";
        let verification = wechat.verification(now(), echostr);
        let get = format!("GET {PATH}?{verification} HTTP/1.0\r\n\r\n");
        assert_eq!(exchange(&address, get.as_bytes()).await.status, 200);
        relay.audited("delivered", 1).await;
        running.find("an attempt", |line| line.contains(attempt_in(format)).then_some(())).await;
        collector.wait_for(1).await;
        let mut printed = running.lines().join("\n");
        // Output that an operator requests has OpenIDs; texts are shown only with `--text`.
        for args in [
            &["check"][..],
            &["check", "--online"],
            &["audit"],
            &["audit", "--deep"],
            &["targets", "ls"],
            &["dead", "ls"],
            &["healthcheck"],
            &["top", "--once"],
        ] {
            let finished = relay.run(args).await;
            printed += &format!("{}{}", finished.stdout, finished.stderr);
        }
        let shown = relay.run(&["events", "ls", "--json"]).await.stdout + &relay.run(&["why", OPENID]).await.stderr;
        let queries = [&good.query, &stranger.query, &verification];
        let parts = ["signature", "msg_signature", "nonce"];
        let parts = queries.iter().flat_map(|query| parts.iter().filter_map(|part| parameter(query, part)));
        let kept = ["ARareAdminToken", "ARareHeaderSecret", "c29tZSBzaWduaW5nIGtleSBvZi", CONTENT, echostr];
        let kept = kept.into_iter().chain(["ARareUrlSecret", "ARareCollectorSecret"]);
        let kept = kept.chain([wechat.token.as_str(), &wechat.aes_key]).chain(parts);
        let mut looked_for = 0;
        for secret in kept {
            looked_for += 1;
            let line = printed.lines().chain(shown.lines()).find(|line| line.contains(secret));
            assert_eq!(line, None, "{format}: {secret} got out");
        }
        assert!(looked_for > 12, "only {looked_for}");
        assert_eq!(printed.lines().find(|line| line.contains(OPENID)), None, "{format}: a clear OpenID got out");
    }
}

#[tokio::test]
async fn what_a_push_holds_writes_no_line_of_its_own_and_moves_no_terminal() {
    for format in ["json", "text"] {
        let (wechat, crm) = (WeChat::secure(), Target::start().await);
        let bad = "\u{1b}[31mred\u{7}\r\nFORGED line\u{9b}2J\u{2028}";
        crm.script([Reaction::Answer(Reply { status: 500, ..Reply::body("text/plain", bad) })]);
        let config = wechat.account() + &crm.config("crm", "retry = [\"20ms\"]");
        let mut relay = Setup::new(config).start().await;
        relay.log_settings(&format!("level = \"trace\"\nformat = \"{format}\"\nopenid = \"clear\""));
        relay.stop().await;
        let running = relay.spawn(&["serve"]);
        let address = running.find("push address", push_address).await;
        running.find("ready", |line| line.contains("ready").then_some(())).await;
        let clear = event(&format!("o{bad}"), &format!("SUB{bad}"), &format!("key{bad}"));
        let mut push = wechat.push(&clear);
        // The OpenID in the query is not used.
        push.query = push.query.replace(&format!("openid=o{bad}"), "openid=o");
        assert_eq!(push.send(&address).await.status, 200);
        let strange = format!(
            "GET {PATH}?signature=%1b[31m%0d%0aFORGED HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\t2J\r\n\r\n"
        );
        assert_eq!(exchange(&address, strange.as_bytes()).await.status, 400);
        relay.audited("delivered", 1).await;
        let is_attempt = |line: &str| line.contains(attempt_in(format)) && line.contains("FORGED");
        running.find("an attempt", |line| is_attempt(line).then_some(())).await;
        for line in running.lines() {
            assert!(!line.trim_start().starts_with("FORGED"), "{format}: {line:?}");
            assert!(!line.contains(|sign: char| sign.is_control() && sign != '\t'), "{format}: {line:?}");
        }
    }
}

/// What a line about an attempt at `crm` has in a format of the log.
fn attempt_in(format: &str) -> &'static str {
    if format == "text" { "-> crm" } else { "\"attempt\"" }
}

fn push_address(line: &str) -> Option<String> {
    // Both formats have the address after `address`; the admin listener's line has `admin`.
    let rest = line.contains("listening").then(|| line.split_once("address"))??.1;
    let address = rest.trim_start_matches(['"', ':', '=']).split(['"', ' ', ',']).next()?;
    (line.contains("push")).then(|| address.to_owned())
}

#[tokio::test]
async fn the_level_changes_while_the_relay_runs() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay =
        Setup::new(wechat.account() + &crm.config("crm", "")).log("level = \"warn,wxrelay::app=info\"").start().await;
    relay.accept(&wechat, &text("o1", "unseen")).await;
    relay.audited("delivered", 1).await;
    assert!(!relay.lines().iter().any(|line| line.contains("\"push\"") && line.contains("accepted")));
    relay.log_settings("level = \"info\"");
    relay.signal(Signal::HUP);
    relay.log("line that says reloaded", |line| line["message"] == "config reloaded").await;
    relay.accept(&wechat, &text("o1", "seen")).await;
    relay.log("line about the push", |line| line["message"] == "push" && line["stamp"].is_i64()).await;
}

#[tokio::test]
async fn config_errors_do_not_print_secrets() {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let mut relay = Relay::start(wechat.account() + &crm.config("crm", "")).await;
    let bad = WeChat { token: "not/a/token".to_owned(), aes_key: "ShortButSecretKey".to_owned(), ..wechat };
    relay.configure(bad.account() + &crm.config("crm", "secret = \"whsec_%%%NotBase64%%%\""));
    let checked = relay.run(&["check"]).await;
    assert_eq!(checked.code, Some(78), "{checked:?}");
    for secret in [bad.token.as_str(), bad.aes_key.as_str(), "NotBase64"] {
        assert!(!checked.stderr.contains(secret) && !checked.stdout.contains(secret), "{secret}: {checked:?}");
    }
}
