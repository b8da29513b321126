//! The routing table as an operator would draw it: what `wxrelay check` prints, as text and as JSON.
//!
//! It holds the full URL of every target, which for identity providers is a secret: it is for a terminal, not for a
//! log. Deliberately not here: checking anything.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Config, targets};
use crate::deliver::Role;
use crate::dispatcher::TargetSettings;
use crate::push::{Account, ReplyWindow};
use crate::route::{ReplyRule, Route, When};
use crate::wechat::ReplyBody;

/// Accounts with their routes, then targets, as aligned text.
pub fn text(config: &Config) -> String {
    let mut text = String::new();
    for account in &config.accounts {
        let facts = [
            ("path", shown_path(account).to_owned()),
            ("app_id", account.credentials.app_id.to_string()),
            ("mode", account.credentials.mode.to_string()),
            ("replies", replies(account)),
        ];
        block(&mut text, &format!("account {}", account.name), &facts);
        routes(&mut text, account.routes.routes());
    }
    for settings in &config.targets {
        let target = &settings.target;
        let facts = [
            ("role", role(target.role).to_owned()),
            ("url", target.url.to_string()),
            ("format", targets::format_word(target.format).to_owned()),
            ("timeout", format!("{}, {} attempts at one time", words(target.timeout), settings.concurrency)),
            ("retry", schedule(settings)),
            ("then", end(settings)),
        ];
        block(&mut text, &format!("target {}", target.name), &facts);
    }
    text
}

/// The same for scripts.
pub fn json(config: &Config) -> Value {
    let accounts = config.accounts.iter().map(|account| {
        let routes = account.routes.routes().iter().map(|route| {
            let reply = route.reply.as_ref().map(reply);
            json!({ "when": when(&route.when), "to": route.to.iter().map(|name| &**name).collect::<Vec<_>>(), "reply": reply })
        });
        json!({
            "name": &*account.name, "path": shown_path(account), "app_id": &*account.credentials.app_id,
            "mode": account.credentials.mode.to_string(), "replies": replies(account), "routes": routes.collect::<Vec<_>>(),
        })
    });
    let targets = config.targets.iter().map(|settings| {
        let target = &settings.target;
        json!({
            "name": &*target.name, "role": role(target.role), "url": target.url.to_string(),
            "format": targets::format_word(target.format), "timeout": words(target.timeout),
            "concurrency": settings.concurrency, "retry": settings.retry.waits().iter().map(|wait| words(*wait)).collect::<Vec<_>>(),
            "expire_after": settings.expire_after.map(words), "end": end(settings),
        })
    });
    json!({
        "accounts": accounts.collect::<Vec<_>>(), "targets": targets.collect::<Vec<_>>(),
        "warnings": config.warnings, "sha256": config.sha256,
    })
}

fn block(text: &mut String, title: &str, facts: &[(&str, String)]) {
    let gap = if text.is_empty() { "" } else { "\n" };
    *text += &format!("{gap}{title}\n");
    for (name, fact) in facts {
        *text += &format!("  {name:<9}{fact}\n");
    }
}

fn routes(text: &mut String, routes: &[Route]) {
    let rows: Vec<_> = routes.iter().map(|route| (when(&route.when), to(route), route.reply.as_ref())).collect();
    let widest = |texts: &mut dyn Iterator<Item = &String>| texts.map(|text| text.chars().count()).max().unwrap_or(0);
    let when_width = widest(&mut rows.iter().map(|(when, _, _)| when));
    let to_width = widest(&mut rows.iter().map(|(_, to, _)| to));
    for (index, (when, to, rule)) in rows.iter().enumerate() {
        let mut line = format!("  routes[{index}]  {when:<when_width$}  -> {to:<to_width$}");
        if let Some(rule) = rule {
            line += &format!("  reply {}", reply(rule));
        }
        *text += &format!("{}\n", line.trim_end());
    }
}

/// Until when a reply reaches the user.
fn replies(account: &Account) -> String {
    let budget = words(account.reply_budget);
    match account.reply_window {
        None => format!("within {budget}"),
        Some(ReplyWindow { length, failures, period }) => {
            let (length, period) = (words(length), words(period));
            format!(
                "within {budget}, or {length} by WeChat's next tries, at the price of {failures} failures in {period}"
            )
        }
    }
}

fn shown_path(account: &Account) -> &str {
    if account.path.is_empty() { "/" } else { &account.path }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Identity => "identity",
        Role::Handler => "handler",
    }
}

fn when(when: &When) -> String {
    let When::Match(patterns) = when else { return "otherwise".to_owned() };
    let given = patterns.keys().into_iter().filter_map(|(key, patterns)| Some(format!("{key} = {}", patterns?)));
    given.collect::<Vec<_>>().join(", ")
}

fn to(route: &Route) -> String {
    if route.to.is_empty() { "nowhere".to_owned() } else { route.to.join(", ") }
}

/// Who comes first, and who in place of whom.
fn reply(rule: &ReplyRule) -> String {
    let asked = rule.asked.iter().map(|name| format!("by {name}"));
    asked.chain(rule.fixed.as_ref().map(fixed)).collect::<Vec<_>>().join(", else ")
}

fn fixed(body: &ReplyBody) -> String {
    match body {
        ReplyBody::Text { content } => format!("{content:?}"),
        ReplyBody::Image { .. } => "an image".to_owned(),
        ReplyBody::Voice { .. } => "a voice message".to_owned(),
        ReplyBody::Video { .. } => "a video".to_owned(),
        ReplyBody::Music { .. } => "music".to_owned(),
        ReplyBody::News { .. } => "an article".to_owned(),
        ReplyBody::TransferCustomerService { .. } => "customer service".to_owned(),
    }
}

fn schedule(settings: &TargetSettings) -> String {
    let waits: Vec<_> = settings.retry.waits().iter().map(|wait| words(*wait)).collect();
    match waits.last() {
        None => "none".to_owned(),
        Some(last) if repeats(settings) => format!("after {}, then every {last}", waits.join(", ")),
        Some(_) => format!("after {}", waits.join(", ")),
    }
}

/// What becomes of a delivery that no attempt brings home, and when.
fn end(settings: &TargetSettings) -> String {
    let waits = settings.retry.waits();
    let attempts = waits.len() + 1;
    let dead = format!("dead after {attempts} attempts, about {}", about(waits.iter().sum()));
    match settings.expire_after {
        Some(after) if repeats(settings) => format!("expired {} after the push", words(after)),
        Some(after) => format!("{dead}, or expired {} after the push", words(after)),
        None if waits.is_empty() => "dead after the first attempt".to_owned(),
        None => dead,
    }
}

fn repeats(settings: &TargetSettings) -> bool {
    let beyond = u32::try_from(settings.retry.waits().len() + 1).unwrap_or(u32::MAX);
    settings.retry.wait(beyond, 0.5, None).is_some()
}

/// As an operator writes it: whole hours stay hours.
fn words(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds >= 3600 && duration == Duration::from_hours(seconds / 3600) => {
            format!("{}h", seconds / 3600)
        }
        _ => humantime::format_duration(duration).to_string(),
    }
}

/// To the hour, where it is long.
fn about(duration: Duration) -> String {
    if duration < Duration::from_hours(3) {
        words(duration)
    } else {
        format!("{}h", (duration.as_secs() + 1800) / 3600)
    }
}
