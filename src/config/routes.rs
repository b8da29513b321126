//! `[[accounts.NAME.routes]]`: the routing table of one account.

use std::sync::Arc;

use super::accounts::Known;
use super::error::{Problem, nearest};
use super::file::{self, Answerer, List};
use super::fixed_reply;
use super::scope::Scope;
use super::value;
use crate::deliver::Role;
use crate::route::{Match, Pattern, Patterns, ReplyRule, Route, Table, When};

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
    Table::new(routes)
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

/// The targets in the order of their right to reply; a fixed reply can only be the last resort.
fn reply_rule(scope: &Scope<'_>, reply: &file::Reply, route: &file::Route, known: &Known<'_>) -> Option<ReplyRule> {
    let answerers: Vec<_> = match reply {
        file::Reply::One(answerer) => vec![(scope.clone(), answerer)],
        file::Reply::List(list) => list.iter().enumerate().map(|(index, one)| (scope.nth(index), one)).collect(),
    };
    if answerers.is_empty() {
        scope.fault(Problem::Missing("at least one target or a fixed reply"));
    }
    let mut rule = ReplyRule { asked: Vec::new(), fixed: None };
    for (scope, answerer) in answerers {
        if rule.fixed.is_some() {
            scope.fault(Problem::Rule(
                "never used, since the fixed reply before it always replies; put that at the end",
            ));
        }
        match answerer {
            Answerer::Target(name) => {
                check_replier(&scope, name, route, known);
                if rule.asked.iter().any(|asked| **asked == **name) {
                    scope.fault(Problem::Rule("named twice in this list, expected once"));
                }
                rule.asked.push(name.as_str().into());
            }
            Answerer::Fixed(fixed) => rule.fixed = Some(fixed_reply::read(&scope, fixed)?),
        }
    }
    Some(rule)
}

fn check_replier(scope: &Scope<'_>, name: &str, route: &file::Route, known: &Known<'_>) {
    let named = route.to.as_ref().is_some_and(|list| list.0.iter().any(|target| target == name));
    if !known.names.contains(&name) {
        check_target(scope, name, known);
    } else if !named {
        scope.fault(Problem::Rule("this target gets nothing by this route, so it cannot reply; add it to `to`"));
    }
}
