//! `[[accounts.NAME.routes]]`: the routing table of one account.

use std::sync::Arc;

use super::accounts::Known;
use super::error::{Problem, nearest};
use super::file::{self, List, Scalar};
use super::scope::Scope;
use super::value;
use crate::deliver::Role;
use crate::route::{Match, Pattern, Patterns, ReplyRule, Route, Table, When};
use crate::wechat::reply::Article;
use crate::wechat::{Reply, ReplyBody};

/// The table of an account: as written, or the Mode 2 default.
pub(super) fn table(scope: &Scope<'_>, file: &[file::Route], known: &Known<'_>) -> Table {
    let scope = scope.at("routes");
    if file.is_empty() {
        let of = |role| known.targets.iter().filter(move |settings| settings.target.role == role);
        let names = |role| of(role).map(|settings| Arc::clone(&settings.target.name)).collect();
        return Table::mode2(names(Role::Identity), names(Role::Handler));
    }
    let routes = file.iter().enumerate().filter_map(|(index, file)| route(&scope.nth(index), file, known)).collect();
    let mut otherwise = file.iter().enumerate().filter(|(_, route)| route.otherwise.is_some());
    if otherwise.next().is_none() {
        scope.warn(format_args!("without `otherwise = true` an event that no route matches goes to no target"));
    }
    for (index, _) in otherwise {
        scope.nth(index).warn(format_args!("never used, since an `otherwise` above takes everything"));
    }
    Table { routes }
}

fn route(scope: &Scope<'_>, file: &file::Route, known: &Known<'_>) -> Option<Route> {
    let when = when(scope, file);
    let to = targets(&scope.at("to"), file, known);
    let reply = file.reply.as_ref().and_then(|reply| reply_rule(&scope.at("reply"), reply, file, known));
    Some(Route { when: when?, to, reply })
}

fn when(scope: &Scope<'_>, file: &file::Route) -> Option<When> {
    match (&file.r#match, &file.otherwise) {
        (Some(patterns), None) => Some(When::Match(patterns_of(&scope.at("match"), patterns))),
        (None, Some(_)) => scope.read("otherwise", &file.otherwise, value::yes).map(|()| When::Otherwise),
        (Some(_), Some(_)) => {
            scope.fault(Problem::Rule("`match` and `otherwise` exclude each other, expected only one of them"));
            None
        }
        (None, None) => {
            scope.at("match").fault(Problem::Missing("what the route is for, or `otherwise = true`"));
            None
        }
    }
}

fn patterns_of(scope: &Scope<'_>, file: &file::Match) -> Match {
    // Where WeChat's own spelling varies, case does not count.
    let (blind, exact) = (true, false);
    let read = |name: &str, list: &Option<List>, case_blind| patterns(&scope.at(name), list.as_ref()?, case_blind);
    let given = [&file.msg_type, &file.event, &file.event_key, &file.scene, &file.content, &file.from];
    if given.iter().all(|list| list.is_none()) {
        scope.fault(Problem::Missing("at least one of msg_type, event, event_key, scene, content, from"));
    }
    Match {
        msg_type: read("msg_type", &file.msg_type, blind),
        event: read("event", &file.event, blind),
        event_key: read("event_key", &file.event_key, exact),
        scene: read("scene", &file.scene, exact),
        content: read("content", &file.content, exact),
        from: read("from", &file.from, exact),
    }
}

fn patterns(scope: &Scope<'_>, list: &List, case_blind: bool) -> Option<Patterns> {
    if list.0.is_empty() {
        scope.fault(Problem::Missing("at least one pattern"));
    }
    let pattern = |(index, text): (usize, &String)| {
        let at = if list.0.len() == 1 { scope.clone() } else { scope.nth(index) };
        Pattern::parse(text, case_blind).map_err(|error| at.fault(Problem::Pattern(error))).ok()
    };
    Some(Patterns(list.0.iter().enumerate().filter_map(pattern).collect()))
}

fn targets(scope: &Scope<'_>, file: &file::Route, known: &Known<'_>) -> Vec<Arc<str>> {
    let Some(list) = &file.to else {
        if file.reply.is_none() {
            scope.fault(Problem::Missing("the names of targets, or [] if nothing is to be done"));
        }
        return Vec::new();
    };
    for (index, name) in list.0.iter().enumerate() {
        check_target(&scope.nth(index), name, known);
    }
    list.0.iter().map(|name| name.as_str().into()).collect()
}

fn check_target(scope: &Scope<'_>, name: &str, known: &Known<'_>) {
    if !known.names.contains(&name) {
        let nearest = nearest(name, known.names.iter().copied());
        scope.fault(Problem::UnknownTarget { name: name.to_owned(), nearest });
    }
}

fn reply_rule(scope: &Scope<'_>, reply: &file::Reply, route: &file::Route, known: &Known<'_>) -> Option<ReplyRule> {
    match reply {
        file::Reply::Target(name) => {
            let named = route.to.as_ref().is_some_and(|list| list.0.contains(name));
            if !known.names.contains(&name.as_str()) {
                check_target(scope, name, known);
            } else if !named {
                scope
                    .fault(Problem::Rule("this target gets nothing by this route, so it cannot reply; add it to `to`"));
            }
            Some(ReplyRule::Target(name.as_str().into()))
        }
        file::Reply::Fixed(fixed) => {
            let body = body(scope, fixed)?;
            let checked = Reply::new(body.clone()).check();
            checked.map_err(|error| scope.fault(Problem::Reply(error))).ok()?;
            Some(ReplyRule::Fixed(body))
        }
    }
}

fn body(scope: &Scope<'_>, fixed: &file::FixedReply) -> Option<ReplyBody> {
    let text = |given: &Option<Scalar>| given.as_ref().map(|Scalar(text)| text.clone());
    match fixed {
        file::FixedReply { text: Some(Scalar(content)), image: None, news: None, transfer_customer_service: None } => {
            Some(ReplyBody::Text { content: content.clone() })
        }
        file::FixedReply { text: None, image: Some(Scalar(id)), news: None, transfer_customer_service: None } => {
            Some(ReplyBody::Image { media_id: id.clone() })
        }
        file::FixedReply { text: None, image: None, news: Some(news), transfer_customer_service: None } => {
            let article = Article {
                title: text(&news.title).unwrap_or_default(),
                description: text(&news.description).unwrap_or_default(),
                pic_url: text(&news.pic_url).unwrap_or_default(),
                url: text(&news.url).unwrap_or_default(),
            };
            Some(ReplyBody::News { articles: vec![article] })
        }
        file::FixedReply { text: None, image: None, news: None, transfer_customer_service: Some(_) } => {
            scope.read("transfer_customer_service", &fixed.transfer_customer_service, value::yes)?;
            Some(ReplyBody::TransferCustomerService { kf_account: None })
        }
        _ => {
            scope.fault(Problem::Rule(
                "expected exactly one of `text`, `image`, `news` and `transfer_customer_service`",
            ));
            None
        }
    }
}
