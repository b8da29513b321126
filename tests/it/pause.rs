//! A paused target gets no attempts until it is resumed.

use crate::support::command::free_address;
use crate::support::eventually;
use crate::support::http::post;
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, text, text_reply};

#[tokio::test]
async fn a_paused_target_gets_nothing_until_it_is_resumed() {
    let (relay, wechat, crm, bot) = relay("").await;
    let answer = post(&relay.admin, "/api/targets/crm/pause").await;
    assert_eq!((answer.status, answer.text()), (200, r#"{"name":"crm","paused":true}"#));
    relay.log("line that says so", |line| line["message"] == "target paused" && line["target"] == "crm").await;
    relay.accept(&wechat, &text("o1", "one")).await;
    relay.accept(&wechat, &text("o1", "two")).await;
    bot.wait_for(2).await;
    let audit = relay.audited("delivered", 2).await;
    assert_eq!((&audit["pending"], crm.deliveries().len()), (&2.into(), 0));
    assert_eq!(output(&relay, "crm").await, [true; 4]);
    assert_eq!(output(&relay, "bot").await, [false; 4]);

    let resumed = relay.run(&["targets", "resume", "crm"]).await;
    assert_eq!((resumed.code, resumed.stdout.as_str()), (Some(0), "resumed crm\n"), "{resumed:?}");
    relay.log("line that says so", |line| line["message"] == "target resumed" && line["target"] == "crm").await;
    relay.audited("delivered", 4).await;
    assert_eq!(output(&relay, "crm").await, [false; 4]);
    relay.accept(&wechat, &text("o1", "three")).await;
    crm.wait_for(3).await;
}

#[tokio::test]
async fn paused_is_kept_over_reloads_and_restarts() {
    let (mut relay, wechat, crm, _bot) = relay("").await;
    assert_eq!(relay.run(&["targets", "pause", "crm"]).await.code, Some(0));
    assert_eq!(post(&relay.admin, "/api/reload").await.status, 200);
    relay.accept(&wechat, &text("o1", "one")).await;
    relay.audited("delivered", 1).await;
    relay.kill().await;
    relay.restart().await;
    relay.accept(&wechat, &text("o1", "two")).await;
    relay.audited("delivered", 2).await;
    assert_eq!((output(&relay, "crm").await, crm.deliveries().len()), ([true; 4], 0));

    relay.stop().await;
    let resumed = relay.run(&["targets", "resume", "crm", "--json"]).await;
    assert_eq!(resumed.stdout, "{\"target\":\"crm\",\"paused\":false}\n", "{resumed:?}");
    relay.restart().await;
    relay.audited("delivered", 4).await;
    relay.stop().await;
    assert_eq!(relay.run(&["targets", "pause", "crm"]).await.code, Some(0));
    relay.restart().await;
    assert_eq!(output(&relay, "crm").await, [true; 4]);
}

#[tokio::test]
async fn a_reply_awaited_from_a_paused_target_is_success_at_once() {
    let (wechat, bot) = (WeChat::secure(), Target::start().await);
    bot.then(Reaction::Answer(Reply::xml(text_reply("o1", "hi"))));
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"bot\"]\nreply = \"bot\"\n";
    let relay = Relay::start(wechat.account() + route + &bot.config("bot", "")).await;
    assert_eq!(post(&relay.admin, "/api/targets/bot/pause").await.status, 200);
    let asked = tokio::time::Instant::now();
    assert_eq!(relay.accept(&wechat, &text("o1", "hello")).await.text(), "success");
    assert!(asked.elapsed() < std::time::Duration::from_secs(3), "not after the reply budget");
    assert_eq!(post(&relay.admin, "/api/targets/bot/resume").await.status, 200);
    relay.audited("delivered", 1).await;
    let answer = relay.accept(&wechat, &text("o1", "again")).await;
    assert!(wechat.open_reply(answer.text()).contains("hi"));
}

#[tokio::test]
async fn an_attempt_under_way_ends_and_the_rest_waits() {
    let (relay, wechat, crm, _bot) = relay("concurrency = 1").await;
    crm.script([Reaction::Hold(Reply::status(200))]);
    relay.accept(&wechat, &text("o1", "under way")).await;
    relay.accept(&wechat, &text("o1", "waiting")).await;
    crm.wait_for(1).await;
    assert_eq!(post(&relay.admin, "/api/targets/crm/pause").await.status, 200);
    assert_eq!(post(&relay.admin, "/api/targets/crm/pause").await.status, 200, "twice is once");
    crm.release(1);
    relay.audited("delivered", 3).await;
    assert_eq!(crm.deliveries().len(), 1);
    assert_eq!(post(&relay.admin, "/api/targets/crm/resume").await.status, 200);
    relay.audited("delivered", 4).await;
    assert_eq!(crm.deliveries().len(), 2);
}

#[tokio::test]
async fn only_a_target_that_is_known_can_be_paused() {
    let (mut relay, ..) = relay("").await;
    for path in ["/api/targets/crn/pause", "/api/targets/crn/resume"] {
        assert_eq!(post(&relay.admin, path).await.status, 404, "{path}");
    }
    for runs in [true, false] {
        let finished = relay.run(&["targets", "pause", "crn"]).await;
        assert!(finished.code == Some(2) && finished.stderr.contains("expected one of: bot, crm"), "{finished:?}");
        if runs {
            relay.stop().await;
        }
    }
}

/// Whether `/api/targets`, `/api/status`, the metrics and `targets ls` report the target as paused.
async fn output(relay: &Relay, target: &str) -> [bool; 4] {
    let mut output = [false; 4];
    for (output, path) in output.iter_mut().zip(["/api/targets", "/api/status"]) {
        let answer = relay.get(path).await.json();
        let of = answer["targets"].as_array().expect("targets").iter().find(|of| of["name"] == target);
        *output = of.unwrap_or_else(|| panic!("{path} has {target}: {answer}"))["paused"] == true;
    }
    let gauge = async || relay.samples("wxrelay_target_paused").await.into_iter().find(|(has, _)| has.contains(target));
    output[2] = eventually("the gauge", gauge).await.1 == 1.0;
    let listed = relay.run(&["targets", "ls"]).await;
    let line = listed.stdout.lines().find(|line| line.starts_with(target));
    output[3] = line.unwrap_or_else(|| panic!("{listed:?} has {target}")).contains("paused");
    output
}

async fn relay(settings: &str) -> (Relay, WeChat, Target, Target) {
    let (wechat, crm, bot) = (WeChat::secure(), Target::start().await, Target::start().await);
    let config = wechat.account() + &crm.config("crm", settings) + &bot.config("bot", "");
    let relay = Setup::new(config).admin_at(free_address()).start().await;
    (relay, wechat, crm, bot)
}
