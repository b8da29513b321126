//! Lasting states are logged once in a period, with a count, and not once for each push: a log that grows by a line for
//! each refused push fills the disk that is full already.

use serde_json::Value;

use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{Mode, WeChat, text};

#[tokio::test]
async fn pushes_that_a_full_store_refuses_are_counted_and_not_logged_one_by_one() {
    const REFUSED: usize = 200;
    let (wechat, crm) = (WeChat::new(Mode::Plaintext), Target::always(Reaction::Answer(Reply::status(500))).await);
    let relay = Setup::new(wechat.account() + &crm.config("crm", "")).queue("max_size = \"16MiB\"").start().await;
    let large = "x".repeat(900_000);
    let mut stored = 0;
    while wechat.push(&text("o1", &format!("{stored} {large}"))).send(&relay.push).await.status == 200 {
        stored += 1;
    }
    for index in 0..REFUSED {
        assert_eq!(wechat.push(&text("o1", &index.to_string())).send(&relay.push).await.status, 503);
    }
    let refused = [("account", "shop"), ("kind", "text"), ("result", "unavailable")];
    assert_eq!(relay.metric("wxrelay_pushes_total", &refused).await, (REFUSED + 1) as f64);
    // One in ten seconds, and a loaded machine may take some of these periods.
    for message in ["push not stored; WeChat will retry", "push"] {
        let lines = lines(&relay, message);
        let lines = lines.iter().filter(|line| message != "push" || line["result"] == "unavailable");
        let (count, suppressed) = lines.fold((0, 0), |(count, suppressed), line| {
            (count + 1, suppressed + line["held_back"].as_u64().unwrap_or_default())
        });
        assert!((1..=REFUSED / 10).contains(&count), "{count} lines: {message}");
        assert!(count + suppressed as usize <= REFUSED + 1, "{message}");
    }
}

#[tokio::test]
async fn illegal_replies_of_a_handler_are_counted_and_not_logged_one_by_one() {
    const PUSHES: usize = 60;
    let (wechat, bot) = (WeChat::secure(), Target::always(Reaction::Answer(Reply::xml("<xml>no reply"))).await);
    let route = "[[accounts.shop.routes]]\notherwise = true\nto = [\"bot\"]\nreply = \"bot\"\n";
    let relay = Relay::start(wechat.account() + route + &bot.config("bot", "")).await;
    for index in 0..PUSHES {
        relay.accept(&wechat, &text("o1", &index.to_string())).await;
    }
    assert_eq!(relay.metric("wxrelay_replies_total", &[("result", "illegal")]).await, PUSHES as f64);
    let count = lines(&relay, "illegal reply ignored").len();
    assert!((1..=PUSHES / 10).contains(&count), "{count} lines");
}

fn lines(relay: &Relay, message: &str) -> Vec<Value> {
    let lines = relay.lines().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    lines.filter(|line| line["message"] == message).collect()
}
