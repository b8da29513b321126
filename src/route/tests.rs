//! What patterns match, and where routes send a message.

use proptest::prelude::*;

use super::*;
use crate::wechat::{Element, Syntax};

fn message(fields: &[(&str, &str)]) -> Message {
    let mut root = Element::new("xml");
    root.children = fields.iter().map(|&(name, text)| Element::with_text(name, text)).collect();
    Message { root, syntax: Syntax::Xml }
}

fn event(name: &str, key: &str) -> Message {
    message(&[("FromUserName", "o1"), ("MsgType", "event"), ("Event", name), ("EventKey", key)])
}

fn text(content: &str) -> Message {
    message(&[("FromUserName", "o1"), ("MsgType", "text"), ("Content", content)])
}

fn names(texts: &[&str]) -> Vec<Arc<str>> {
    texts.iter().map(|&text| text.into()).collect()
}

fn patterns(text: &str, case_blind: bool) -> Option<Patterns> {
    Some(Patterns(vec![Pattern::parse(text, case_blind).unwrap()]))
}

fn route(when: Match, to: &[&str], reply: Option<&str>) -> Route {
    let reply = reply.map(|name| ReplyRule { asked: names(&[name]), fixed: None });
    Route { when: When::Match(when), to: names(to), reply }
}

fn targets(table: &Table, message: &Message) -> Vec<String> {
    table.plan(message).targets.iter().map(|name| name.to_string()).collect()
}

fn holds(pattern: &str, case_blind: bool, field: &str) -> bool {
    Pattern::parse(pattern, case_blind).unwrap().holds(field)
}

/// Texts that are like the messages' own, as an exact text, a glob or a regular expression.
fn pattern_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-cA-C]{1,3}|SCAN|scan|subscribe|click|好",
        "[a-cA-C]{0,2}\\*[a-cA-C]{0,2}",
        "re:(\\^?[a-cA-C]{1,2}\\$?|\\^[a-c]\\|[a-c]\\+\\$|\\\\b[a-c]|[a-c]\\\\B|\\(\\?x\\)a #|\\(\\?-i\\)A|\\^\\.\\.\\$|\\\\w)",
    ]
}

#[test]
fn expressions_too_large_for_one_automaton_are_split() {
    let staff = |number| Match { event_key: patterns(&format!("re:^{number}_\\w+$"), false), ..Match::default() };
    let table = Table::new((0..30).map(|number| route(staff(number), &[&number.to_string()], None)).collect());
    assert_eq!(table.index.as_ref().unwrap().automata(), 2);
    assert_eq!(targets(&table, &event("CLICK", "27_好")), ["27"]);
    assert!(targets(&table, &event("CLICK", "27_")).is_empty());
}

#[test]
fn mode2_separates_logins_from_the_rest_whatever_the_case() {
    let table = Table::mode2(Vec::new(), names(&["login"]), names(&["crm", "log"]));
    for name in ["subscribe", "SUBSCRIBE", "SCAN", "scan", "Scan"] {
        assert_eq!(targets(&table, &event(name, "7")), ["login"], "{name}");
    }
    assert_eq!(targets(&table, &event("unsubscribe", "")), ["crm", "log"]);
    assert_eq!(targets(&table, &text("SCAN")), ["crm", "log"]);
}

#[test]
fn mode2_without_identity_gives_handlers_everything() {
    let table = Table::mode2(Vec::new(), Vec::new(), names(&["crm"]));
    assert_eq!(targets(&table, &event("SCAN", "7")), ["crm"]);
}

#[test]
fn every_matching_route_counts_each_target_once_and_the_first_reply() {
    let login = Match { event: patterns("SCAN", true), ..Match::default() };
    let vip = Match { scene: patterns("vip*", false), ..Match::default() };
    let table = Table::new(vec![
        route(login, &["login", "log"], None),
        route(vip.clone(), &["log", "crm"], Some("crm")),
        route(vip, &["crm"], Some("log")),
        Route { when: When::Otherwise, to: names(&["rest"]), reply: None },
    ]);
    let scan = event("SCAN", "vip_7");
    assert_eq!(targets(&table, &scan), ["login", "log", "crm"]);
    assert_eq!(table.plan(&scan).reply.map(|rule| rule.asked.as_slice()), Some(&names(&["crm"])[..]));
    assert_eq!(targets(&table, &event("VIEW", "vip")), ["rest"]);
}

#[test]
fn otherwise_depends_only_on_routes_before_it() {
    let any = Match { msg_type: patterns("*", true), ..Match::default() };
    let otherwise = Route { when: When::Otherwise, to: names(&["first"]), reply: None };
    let table = Table::new(vec![otherwise.clone(), route(any, &["second"], None), otherwise]);
    assert_eq!(targets(&table, &text("hi")), ["first", "second"]);
}

#[test]
fn all_keys_of_a_match_must_hold() {
    let both = Match { event: patterns("CLICK", true), event_key: patterns("menu_*", false), ..Match::default() };
    let table = Table::new(vec![route(both, &["menu"], None)]);
    assert_eq!(targets(&table, &event("click", "menu_1")), ["menu"]);
    assert!(targets(&table, &event("click", "other")).is_empty());
    assert!(targets(&table, &event("VIEW", "menu_1")).is_empty());
}

#[test]
fn a_field_that_is_absent_or_empty_holds_no_pattern() {
    let any = |text| Match { event: patterns(text, true), ..Match::default() };
    for pattern in ["*", "re:.*", "re:"] {
        let table = Table::new(vec![route(any(pattern), &["x"], None)]);
        assert!(targets(&table, &text("hi")).is_empty(), "{pattern}");
    }
    let table = Table::new(vec![route(any("*"), &["x"], None)]);
    let spoof = message(&[("MsgType", "text"), ("Event", "SCAN")]);
    assert!(targets(&table, &spoof).is_empty(), "a text has no event");
}

#[test]
fn an_empty_pattern_matches_a_field_that_is_absent_or_empty_and_no_other() {
    let follow =
        |scene| Match { event: patterns("subscribe", true), scene: patterns(scene, false), ..Match::default() };
    let keyless = Match { event_key: patterns("", false), ..Match::default() };
    let few = Table::new(vec![
        route(follow(""), &["search"], None),
        route(follow("*"), &["qr"], None),
        route(keyless, &["no-key"], None),
    ]);
    let filler = |number: usize| {
        route(Match { content: patterns(&format!("filler {number}"), false), ..Match::default() }, &["x"], None)
    };
    let many = Table::new(few.routes().iter().cloned().chain((0..MIN_INDEXED).map(filler)).collect());
    assert!(many.index.is_some());
    for table in [few, many] {
        assert_eq!(targets(&table, &event("subscribe", "")), ["search", "no-key"]);
        assert_eq!(targets(&table, &event("subscribe", " \n")), ["search", "no-key"]);
        assert_eq!(targets(&table, &message(&[("MsgType", "event"), ("Event", "subscribe")])), ["search", "no-key"]);
        assert_eq!(targets(&table, &event("subscribe", "qrscene_7")), ["qr"]);
        assert_eq!(targets(&table, &event("subscribe", "last_trade_no_7")), ["search"]);
        assert_eq!(targets(&table, &text("hi")), ["no-key"]);
    }
    assert_eq!(Pattern::parse(" ", false).unwrap().to_string(), "\"\"");
}

#[test]
fn white_space_around_a_value_or_a_pattern_does_not_count() {
    let table = Table::new(vec![
        route(
            Match { event: patterns(" SCAN\n", true), scene: patterns(" login_* ", false), ..Match::default() },
            &["login"],
            None,
        ),
        route(Match { content: patterns("re:^\\d+$", false), ..Match::default() }, &["number"], None),
    ]);
    assert_eq!(targets(&table, &event("\n SCAN ", " login_7\t")), ["login"]);
    assert_eq!(targets(&table, &event(" subscribe", "x")), Vec::<String>::new());
    assert_eq!(targets(&table, &text("\u{3000} 12 \r\n")), ["number"]);
    let spaced = message(&[("MsgType", " event "), ("Event", "scan"), ("EventKey", "qrscene_ login_1")]);
    assert_eq!(targets(&table, &spaced), ["login"]);
}

#[test]
fn a_scene_is_that_of_a_scan_or_of_the_follow_it_led_to() {
    let scene = Match { scene: patterns("login_*", false), ..Match::default() };
    let table = Table::new(vec![route(scene, &["login"], None)]);
    assert_eq!(targets(&table, &event("SCAN", "login_7")), ["login"]);
    assert_eq!(targets(&table, &event("subscribe", "qrscene_login_7")), ["login"]);
    assert!(targets(&table, &event("CLICK", "login_7")).is_empty());
}

#[test]
fn a_star_is_the_only_special_sign_of_a_glob() {
    assert!(holds("menu/*/a", false, "menu/x/y\n/a"));
    assert!(!holds("menu/**/a", false, "menu/a"));
    assert!(holds("what? [*]", false, "what? [really]"));
    assert!(!holds("what? [*]", false, "whatx [really]"));
    assert!(holds("{a,b}*", false, "{a,b}c"));
    assert!(!holds("{a,b}*", false, "a"));
    assert!(holds("a\\*", false, "a\\b"));
    assert!(holds("SC*", true, "scan") && !holds("SC*", false, "scan"));
}

#[test]
fn a_regular_expression_stands_after_re() {
    assert!(holds("re:^#\\d+$", false, "#12"));
    assert!(!holds("re:^#\\d+$", false, "12"));
    assert!(holds("re:^view", true, "VIEW_miniprogram"));
    assert!(matches!(Pattern::parse("re:(", false), Err(PatternError::Regex(_))));
}

/// Each class needs a table of its own, which could be left out of the build.
#[test]
fn a_regular_expression_knows_letters_digits_and_signs_of_all_scripts() {
    for (pattern, text) in [
        ("re:^\\p{Han}+$", "客服"),
        ("re:^\\w+\\s\\d+$", "工单\u{3000}１２"),
        ("re:^\\p{Lu}\\p{P}$", "Ａ。"),
        ("re:^\\p{Emoji_Presentation}$", "🎁"),
        ("re:(?i)^école$", "ÉCOLE"),
    ] {
        assert!(holds(pattern, false, text), "{pattern}");
        assert!(!holds(pattern, false, "-"), "{pattern}");
    }
    assert!(holds("re:^ｖｉｐ", true, "ＶＩＰ"));
}

proptest! {
    #[test]
    fn a_text_matches_itself_and_its_own_beginning(field in "[^*]{1,20}", rest in ".{0,20}") {
        prop_assume!(!field.starts_with("re:") && !field.is_empty() && field == field.trim());
        prop_assert!(holds(&field, false, &field));
        let glob = format!("{field}*");
        let longer = format!("{field}{rest}");
        prop_assert!(holds(&glob, false, &longer));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,40}", case_blind: bool) {
        drop(Pattern::parse(&text, case_blind));
    }

    #[test]
    fn a_plan_names_no_target_twice(to in proptest::collection::vec(proptest::collection::vec("[abc]", 0..4), 0..6)) {
        let any = || Match { msg_type: patterns("*", true), ..Match::default() };
        let routes = to.iter().map(|to| Route {
            when: When::Match(any()), to: to.iter().map(|name| name.as_str().into()).collect(), reply: None,
        });
        let table = Table::new(routes.collect());
        let mut planned = targets(&table, &text("hi"));
        let all = planned.len();
        planned.sort();
        planned.dedup();
        prop_assert_eq!(planned.len(), all);
        prop_assert!(to.iter().flatten().all(|name| planned.contains(name)));
    }
}

proptest! {
    // Compiling the patterns takes most of it.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn many_routes_looked_up_are_those_that_hold_when_tried_one_by_one(
        asked in proptest::collection::vec(proptest::collection::vec((0_usize..3, pattern_text(), any::<bool>()), 0..4), 0..80),
        (name, key, content) in ("SCAN|subscribe|click", "[a-cA-C]{0,4}", "[a-cA-C好]{0,4}"),
        is_text: bool,
    ) {
        let routes: Vec<_> = asked.iter().enumerate().map(|(number, keys)| {
            let mut when = Match::default();
            for (place, text, case_blind) in keys {
                let more = Pattern::parse(text, *case_blind).unwrap();
                let key = [&mut when.event, &mut when.event_key, &mut when.content].into_iter().nth(*place).unwrap();
                key.get_or_insert_with(|| Patterns(Vec::new())).0.push(more);
            }
            let when = if keys.is_empty() { When::Otherwise } else { When::Match(when) };
            Route { when, to: names(&[&number.to_string()]), reply: None }
        }).collect();
        let message = if is_text { text(&content) } else { event(&name, &key) };
        let tried = Table { routes: routes.clone(), index: None };
        let looked_up = Table { index: Some(Index::new(&routes)), routes };
        prop_assert_eq!(targets(&looked_up, &message), targets(&tried, &message));
    }
}
