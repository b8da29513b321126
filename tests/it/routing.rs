//! Routing: which events are delivered to which targets.

use crate::support::http::exchange;
use crate::support::relay::Relay;
use crate::support::target::{Delivery, Target};
use crate::support::wechat::{WeChat, element, event, text};

#[tokio::test]
async fn without_routes_scans_and_follows_go_to_the_identity_provider_and_all_else_to_the_handlers() {
    let wechat = WeChat::secure();
    let (login, crm, bot) = (Target::start().await, Target::start().await, Target::start().await);
    let targets = login.config("login", "role = \"identity\"\nformat = \"json\"")
        + &crm.config("crm", "")
        + &bot.config("bot", "");
    let relay = Relay::start(wechat.account() + &targets).await;
    for clear in [
        event("o1", "subscribe", ""),
        event("o1", "subscribe", "qrscene_login_7"),
        event("o1", "SCAN", "login_7"),
        event("o1", "unsubscribe", ""),
        event("o1", "CLICK", "menu"),
        event("o1", "VIEW", "https://example.com"),
        text("o1", "hello"),
    ] {
        relay.accept(&wechat, &clear).await;
    }
    assert_eq!(kinds(&login.wait_for(3).await), ["SCAN", "subscribe", "subscribe"]);
    for handler in [&crm, &bot] {
        assert_eq!(kinds(&handler.wait_for(4).await), ["CLICK", "VIEW", "text", "unsubscribe"]);
    }
    let audit = relay.audited("delivered", 11).await;
    assert_eq!((&audit["events"], &audit["deliveries"]), (&7.into(), &11.into()), "nothing went anywhere else");
}

#[tokio::test]
async fn an_event_goes_once_to_every_target_that_any_matching_route_names() {
    let (relay, wechat, [a, b, c]) = relay(
        "[[accounts.shop.routes]]\nmatch = { event = [\"subscribe\", \"SCAN\"] }\nto = [\"a\"]\n\
         [[accounts.shop.routes]]\nmatch = { event = \"scan\", scene = \"login_*\" }\nto = [\"a\", \"b\"]\n\
         [[accounts.shop.routes]]\notherwise = true\nto = [\"c\"]\n",
    )
    .await;
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    relay.accept(&wechat, &event("o1", "SCAN", "poster")).await;
    relay.accept(&wechat, &event("o1", "unsubscribe", "")).await;
    assert_eq!(a.wait_for(2).await.len() + b.wait_for(1).await.len() + c.wait_for(1).await.len(), 4);
    assert_eq!(b.delivery(0).await.json()["scene"], "login_7");
    assert_eq!(c.delivery(0).await.json()["event"], "unsubscribe");
    assert_eq!(relay.audited("delivered", 4).await["deliveries"], 4);
}

#[tokio::test]
async fn a_follow_without_a_scene_has_a_route_of_its_own() {
    let (relay, wechat, [search, qr, keyless]) = relay(
        "[[accounts.shop.routes]]\nmatch = { event = \"subscribe\", scene = \"\" }\nto = [\"a\"]\n\
         [[accounts.shop.routes]]\nmatch = { event = \"subscribe\", scene = \"*\" }\nto = [\"b\"]\n\
         [[accounts.shop.routes]]\nmatch = { event = \"subscribe\", event_key = \" \" }\nto = [\"c\"]\n",
    )
    .await;
    let empty = event("o1", "subscribe", "x").replace("<![CDATA[x]]>", "<![CDATA[ ]]>");
    for clear in [event("o1", "subscribe", ""), empty, event("o1", "subscribe", "qrscene_login_7")] {
        relay.accept(&wechat, &clear).await;
    }
    search.wait_for(2).await;
    keyless.wait_for(2).await;
    assert_eq!(qr.delivery(0).await.json()["scene"], "login_7");
    assert_eq!(relay.audited("delivered", 5).await["deliveries"], 5);
}

#[tokio::test]
async fn white_space_around_a_value_does_not_count() {
    let (relay, wechat, [a, b, c]) = relay(
        "[[accounts.shop.routes]]\nmatch = { event = \" CLICK \", event_key = \"menu \" }\nto = [\"a\"]\n\
         [[accounts.shop.routes]]\nmatch = { content = 're:^\\d+$' }\nto = [\"b\"]\n\
         [[accounts.shop.routes]]\notherwise = true\nto = [\"c\"]\n",
    )
    .await;
    relay.accept(&wechat, &event("o1", "CLICK", " menu\n")).await;
    relay.accept(&wechat, &text("o1", " 12\u{3000}")).await;
    a.delivery(0).await;
    assert_eq!(b.delivery(0).await.json()["message"]["Content"], " 12\u{3000}", "as the user sent it");
    assert!(c.deliveries().is_empty());
}

#[tokio::test]
async fn the_scene_of_a_follow_is_that_of_the_scan() {
    let (relay, wechat, [a, ..]) = relay(
        "[[accounts.shop.routes]]\nmatch = { scene = \"login_7\" }\nto = [\"a\"]\n\
         [[accounts.shop.routes]]\notherwise = true\nto = [\"b\", \"c\"]\n",
    )
    .await;
    relay.accept(&wechat, &event("o1", "subscribe", "qrscene_login_7")).await;
    relay.accept(&wechat, &event("o1", "SCAN", "login_7")).await;
    let deliveries = a.wait_for(2).await;
    assert!(deliveries.iter().all(|delivery| delivery.json()["scene"] == "login_7"));
    let mut keys: Vec<_> = deliveries.iter().map(|delivery| delivery.json()["event_key"].to_string()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["\"login_7\"", "\"qrscene_login_7\""], "the key itself stays as it came");
}

#[tokio::test]
async fn all_keys_of_a_match_must_hold_and_any_pattern_of_a_list_is_enough() {
    let (relay, wechat, [a, b, c]) = relay(
        "[[accounts.shop.routes]]\nmatch = { msg_type = \"text\", content = [\"re:^#\\\\d+$\", \"help*\"] }\nto = [\"a\"]\n\
         [[accounts.shop.routes]]\nmatch = { from = \"o_boss\" }\nto = [\"b\"]\n\
         [[accounts.shop.routes]]\notherwise = true\nto = [\"c\"]\n",
    )
    .await;
    for (from, content) in [("o1", "#42"), ("o1", "help me"), ("o1", "say #42"), ("o_boss", "#1"), ("o_boss", "hm")] {
        relay.accept(&wechat, &text(from, content)).await;
    }
    let said = |deliveries: Vec<Delivery>| {
        let content = |delivery: &Delivery| element(delivery.json()["xml"].as_str()?, "Content");
        let mut said: Vec<_> = deliveries.iter().filter_map(content).collect();
        said.sort_unstable();
        said
    };
    assert_eq!(said(a.wait_for(3).await), ["#1", "#42", "help me"]);
    assert_eq!(said(b.wait_for(2).await), ["#1", "hm"]);
    assert_eq!(said(c.wait_for(1).await), ["say #42"]);
    assert_eq!(relay.audited("delivered", 6).await["deliveries"], 6);
}

#[tokio::test]
async fn the_first_matching_route_with_a_reply_decides_it() {
    let (relay, wechat, _targets) = relay(
        "[[accounts.shop.routes]]\nmatch = { msg_type = \"text\" }\nto = [\"a\"]\n\
         [[accounts.shop.routes]]\nmatch = { content = \"hi*\" }\nto = [\"b\"]\nreply = { text = \"one\" }\n\
         [[accounts.shop.routes]]\nmatch = { content = \"hi\" }\nto = [\"c\"]\nreply = { text = \"two\" }\n",
    )
    .await;
    let answer = relay.accept(&wechat, &text("o1", "hi")).await;
    assert_eq!(element(&wechat.open_reply(answer.text()), "Content").as_deref(), Some("one"));
    assert_eq!(relay.accept(&wechat, &text("o1", "bye")).await.text(), "success");
    relay.audited("delivered", 4).await;
}

#[tokio::test]
async fn one_of_very_many_routes_is_found() {
    let patterns = |number| match number % 3 {
        0 => format!("poster_{number}"),
        1 => format!("shop{number}_*"),
        _ => format!("re:^staff{number}_[0-9]+$"),
    };
    let table = "[[accounts.shop.routes]]\n";
    let many = (0..300).map(|number| {
        let (key, to) = (patterns(number), if number >= 297 { "a" } else { "b" });
        format!("{table}match = {{ event = [\"subscribe\", \"SCAN\"], event_key = \"{key}\" }}\nto = [\"{to}\"]\n")
    });
    let (relay, wechat, [a, _, c]) =
        relay(&(many.collect::<String>() + table + "otherwise = true\nto = [\"c\"]\n")).await;
    for key in ["poster_297", "shop298_door", "staff299_7"] {
        relay.accept(&wechat, &event("o1", "SCAN", key)).await;
    }
    for key in ["poster_1", "shop298", "staff299_x", "Poster_297"] {
        relay.accept(&wechat, &event("o1", "SCAN", key)).await;
    }
    a.wait_for(3).await;
    c.wait_for(4).await;
    assert_eq!(relay.audited("delivered", 7).await["deliveries"], 7);
}

#[tokio::test]
async fn an_event_that_no_route_matches_is_answered_and_kept() {
    let (relay, wechat, _targets) =
        relay("[[accounts.shop.routes]]\nmatch = { event = \"SCAN\" }\nto = [\"a\", \"b\", \"c\"]\n").await;
    assert_eq!(relay.accept(&wechat, &text("o1", "hello")).await.text(), "success");
    let audit = relay.audit().await;
    assert_eq!((&audit["events"], &audit["deliveries"]), (&1.into(), &0.into()));
}

#[tokio::test]
async fn accounts_are_distinguished_by_their_path() {
    let (shop, club) = (WeChat::secure(), WeChat { app_id: "wx669ef95216eef885".to_owned(), ..WeChat::secure() });
    let (a, b) = (Target::start().await, Target::start().await);
    let config = shop.account()
        + "[[accounts.shop.routes]]\notherwise = true\nto = [\"a\"]\n"
        + &club.account_named("club", "/club")
        + "[[accounts.club.routes]]\notherwise = true\nto = [\"b\"]\n"
        + &a.config("a", "")
        + &b.config("b", "");
    let relay = Relay::start(config).await;
    relay.accept(&shop, &text("o1", "to the shop")).await;
    let request = club.push(&text("o1", "to the club")).request("/club");
    assert_eq!(exchange(&relay.push, &request).await.status, 200);
    assert_eq!(a.delivery(0).await.json()["account"], "shop");
    let json = b.delivery(0).await.json();
    assert_eq!((&json["account"], &json["app_id"]), (&"club".into(), &club.app_id.into()));
}

/// A relay with three handlers that get `json`.
async fn relay(routes: &str) -> (Relay, WeChat, [Target; 3]) {
    let (wechat, targets) = (WeChat::secure(), [Target::start().await, Target::start().await, Target::start().await]);
    let tables: Vec<_> = ["a", "b", "c"].iter().zip(&targets).map(|(name, target)| target.config(name, "")).collect();
    let relay = Relay::start(wechat.account() + routes + &tables.concat()).await;
    (relay, wechat, targets)
}

/// The events and message types of deliveries, sorted.
fn kinds(deliveries: &[Delivery]) -> Vec<String> {
    let kind = |delivery: &Delivery| {
        let json = delivery.json();
        let event = json["event"].as_str().filter(|event| !event.is_empty());
        event.or(json["msg_type"].as_str()).expect("every delivery has a type").to_owned()
    };
    let mut kinds: Vec<_> = deliveries.iter().map(kind).collect();
    kinds.sort_unstable();
    kinds
}
