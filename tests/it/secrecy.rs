//! Nothing secret gets out: no token, key, query, message or clear OpenID in logs, errors and metrics.

use crate::support::http::exchange;
use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{PATH, Push, WeChat, event, parameter, text};

const OPENID: &str = "oSecretPerson0123456789abcdef";
const CONTENT: &str = "a confession that nobody else shall read";

#[tokio::test]
async fn logs_and_metrics_hold_no_secret() {
    let wechat = WeChat { token: "AVeryRareTokenIndeed".to_owned(), ..WeChat::secure() };
    let crm = Target::start().await;
    crm.script([Reaction::Answer(Reply { status: 500, ..Reply::xml(CONTENT) }), Reaction::Close]);
    let settings =
        "retry = [\"20ms\", \"20ms\", \"20ms\"]\nsecret = \"whsec_c29tZSBzaWduaW5nIGtleSBvZiAzMiBieXRlcy4uLg==\"";
    let relay = Relay::start(wechat.account() + &crm.config("crm", settings)).await;

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
    let told = relay.lines().join("\n") + relay.get("/metrics").await.text() + relay.get("/api/status").await.text();
    for secret in [&wechat.token, &wechat.aes_key, OPENID, CONTENT, signature, "c29tZSBzaWduaW5nIGtleSBvZi"] {
        let line = told.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} got out");
    }
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
