//! `wxrelay why`: from a line of WeChat's alarm to the event, or to the reason why there is none.

use std::io::{Seek, Write};

use serde_json::Value;

use crate::support::command::{Finished, free_address, run, wxrelay};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, element, event, parameter, text};

#[tokio::test]
async fn an_alarm_leads_to_its_event_with_every_attempt() {
    let (relay, wechat, crm) = relay().await;
    crm.script([Reaction::Answer(Reply::status(500))]);
    let clear = event("oAlarmed", "CLICK", "menu");
    let stamp = element(&clear, "CreateTime").expect("it has one");
    relay.accept(&wechat, &clear).await;
    relay.accept(&wechat, &text("oAlarmed", "another")).await;
    relay.accept(&wechat, &event("oQuiet", "CLICK", "menu")).await;
    relay.audited("delivered", 3).await;
    let whole = format!(
        "Appid: {}\n昵称: 小店\n内容: 微信服务器向公众号推送消息或事件后，得到的回应不合法\n次数: 5分钟 1次\n\
         错误样例: [OpenID=oAlarmed][Stamp={stamp}][Event=Click]\n",
        wechat.app_id
    );
    for line in [
        format!("[OpenID=oAlarmed][Stamp={stamp}][Event=Click]"),
        "【OpenID=oAlarmed】【Event=click】".to_owned(),
        whole,
    ] {
        let found = relay.run(&["why", &line]).await;
        assert_eq!(found.code, Some(0), "{line}: {found:?}");
        let output = &found.stdout;
        assert_eq!(output.matches("evt_").count(), 1, "{line}: {output}");
        assert!(output.contains("event CLICK menu") && output.contains("oAlarmed"), "{line}: {output}");
        assert!(
            output.contains("attempt 1") && output.contains("500") && output.contains("attempt 2"),
            "{line}: {output}"
        );
    }
    let found = json(&relay.run(&["why", "--json", &format!("[Stamp={stamp}][Event=CLICK]")]).await);
    assert_eq!(found["events"].as_array().map(Vec::len), Some(2), "both users' clicks: {found}");
    assert_eq!(found["not_found"], Value::Null);
}

#[tokio::test]
async fn the_api_finds_events_by_id_openid_and_alarm() {
    let (relay, wechat, _crm) = relay().await;
    let clear = event("oAlarmed", "CLICK", "menu");
    let stamp: i64 = element(&clear, "CreateTime").expect("it has one").parse().expect("a number");
    relay.accept(&wechat, &clear).await;
    relay.accept(&wechat, &text("oAlarmed", "another")).await;
    relay.accept(&wechat, &event("oQuiet", "CLICK", "menu")).await;
    let find = async |query: String| {
        let page = relay.get(&format!("/api/events?{query}")).await.json();
        let found = page["events"].as_array().expect("a list");
        let ids: Vec<_> = found.iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect();
        (ids, page["cursor"].clone())
    };
    let (all, _) = find(String::new()).await;
    let [quiet, message, click] = &all[..] else { panic!("{all:?}") };
    let whole = [click.clone()];
    let old = stamp - 3600;
    for (query, expected) in [
        (format!("q=%20{message}%20"), vec![message]),
        (format!("q={message}&limit=1&target=crm"), vec![message]),
        (format!("q={message}&from=oQuiet"), vec![]),
        (format!("q={message}&cursor={message}"), vec![]),
        ("q=evt_ffffffffffffffff".to_owned(), vec![]),
        ("q=oAlarmed".to_owned(), vec![message, click]),
        ("q=oAlarmed&from=oQuiet".to_owned(), vec![]),
        ("q=oNobody".to_owned(), vec![]),
        (format!("q=%5BOpenID=oAlarmed%5D%5BStamp={stamp}%5D%5BEvent=Click%5D"), whole.iter().collect()),
        (format!("q=%5BStamp={stamp}%5D%5BEvent=Click%5D"), vec![quiet, click]),
        (format!("q=%5BOpenID=oAlarmed%5D%5BStamp={old}%5D"), vec![]),
    ] {
        let (found, cursor) = find(query.clone()).await;
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{query}");
        assert_eq!(cursor, Value::Null, "{query}");
    }
    let alarm = format!("q=%5BOpenID=oAlarmed%5D%5BStamp={stamp}%5D%5BEvent=Click%5D&limit=1");
    let (none, next) = find(alarm.clone()).await;
    assert!(none.is_empty(), "the newer message is of another kind: {none:?}");
    let next = next.as_str().expect("there is another page");
    assert_eq!(find(format!("{alarm}&cursor={next}")).await, (whole.to_vec(), Value::Null));
}

#[tokio::test]
async fn where_nothing_is_found_it_says_what_that_means() {
    let (relay, wechat, _crm) = relay().await;
    let now = element(&text("o1", "now"), "CreateTime").expect("it has one").to_owned();
    let why = async |line: String, word: &str, output: &str| {
        let found = relay.run(&["why", &line]).await;
        assert_eq!(found.code, Some(3), "{line}: {found:?}");
        assert!(found.stdout.contains(output), "{line}: {}", found.stdout);
        let found = relay.run(&["why", "--json", &line]).await;
        assert_eq!((found.code, &json(&found)["not_found"]), (Some(3), &word.into()), "{line}");
    };
    why(format!("[OpenID=oNobody][Stamp={now}]"), "never_arrived", "DNS").await;
    why("[OpenID=oNobody][Stamp=1435922000]".to_owned(), "no_longer_kept", "queue.retention = 7days").await;
    why(format!("Appid: wx0000000000000000\n[OpenID=oNobody][Stamp={now}]"), "other_account", "wx0000000000000000")
        .await;
    let stranger = WeChat { token: "guessed".to_owned(), ..wechat }.push(&text("oNobody", "hello"));
    assert!(parameter(&stranger.query, "signature").is_some());
    assert_eq!(stranger.send(&relay.push).await.status, 403);
    why(format!("[OpenID=oNobody][Stamp={now}]"), "refused_or_never_arrived", "signature").await;
}

#[tokio::test]
async fn an_event_of_another_kind_or_time_is_a_hint_and_not_found() {
    let (relay, wechat, _crm) = relay().await;
    let clear = event("oAlarmed", "SCAN", "1");
    let stamp: u64 = element(&clear, "CreateTime").expect("it has one").parse().expect("seconds");
    relay.accept(&wechat, &clear).await;
    relay.audited("delivered", 1).await;
    for (line, code) in [
        (format!("[OpenID=oAlarmed][Stamp={stamp}][OuterIP=175.24.214.150][Event=Scan QRCode][ip=]"), 0),
        (format!("[OpenID=oAlarmed][Stamp={stamp}][Event=UnSubscribe]"), 3),
        (format!("[OpenID=oAlarmed][Stamp={stamp}][Event=Something New]"), 3),
        (format!("[OpenID=oAlarmed][Stamp={}][Event=Scan QRCode]", stamp - 120), 3),
    ] {
        let finished = relay.run(&["why", &line]).await;
        assert_eq!(finished.code, Some(code), "{line}: {finished:?}");
        let is_hint = finished.stdout.contains("Near it, but not that push:");
        assert_eq!(is_hint, code == 3, "{line}: {}", finished.stdout);
        assert!(finished.stdout.contains("event SCAN 1"), "{line}: {}", finished.stdout);
        let finished = relay.run(&["why", "--json", &line]).await;
        let found: Value = serde_json::from_str(&finished.stdout).expect("JSON");
        let counts = ["events", "near"].map(|field| found[field].as_array().map_or(0, Vec::len));
        assert_eq!(counts, if code == 0 { [1, 0] } else { [0, 1] }, "{found}");
    }
}

#[tokio::test]
async fn a_dash_reads_the_alarm_from_standard_input() {
    let (relay, wechat, _crm) = relay().await;
    let clear = event("oAlarmed", "CLICK", "menu");
    let stamp = element(&clear, "CreateTime").expect("it has one");
    relay.accept(&wechat, &clear).await;
    let mut input = tempfile::tempfile().expect("a file");
    writeln!(input, "错误样例: [OpenID=oAlarmed][Stamp={stamp}][Event=Click]").expect("it can be written");
    input.rewind().expect("it can be read");
    let mut command = wxrelay(["why", "-", "-c"]);
    command.arg(relay.config()).stdin(input);
    let found = run(command).await;
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(found.stdout.contains("event CLICK menu"), "{found:?}");
}

#[tokio::test]
async fn text_without_an_alarm_and_a_stopped_relay_are_distinguished() {
    let (mut relay, ..) = relay().await;
    let nonsense = relay.run(&["why", "[Event=Click]"]).await;
    assert_eq!(nonsense.code, Some(2), "{nonsense:?}");
    assert!(nonsense.stderr.contains("no `OpenID=..`"), "{nonsense:?}");
    relay.stop().await;
    let unreachable = relay.run(&["why", "[OpenID=o1]"]).await;
    assert_eq!(unreachable.code, Some(1), "{unreachable:?}");
    assert!(unreachable.stderr.contains("no relay answers at admin.listen"), "{unreachable:?}");
    assert_eq!(run(wxrelay(["why", "--loud"])).await.code, Some(2));
}

async fn relay() -> (Relay, WeChat, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "retry = [\"20ms\"]");
    (Setup::new(config).admin_at(free_address()).start().await, wechat, crm)
}

fn json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}
