//! `[[accounts.NAME.routes]]`: the routing table of one account.

use std::sync::Arc;

use super::accounts::KnownTargets;
use super::conditions;
use super::error::{Problem, nearest};
use super::file::{self, ReplierSection};
use super::fixed_reply;
use super::key_reader::KeyReader;
use super::{provider, value};
use crate::deliver::{Role, Target};
use crate::route::{ReplyRule, Route, Table, When};

/// The routing table of an account: the configured routes, or the Mode 2 default.
pub(super) fn table(reader: &KeyReader<'_>, file: &[file::RouteSection], known: &KnownTargets<'_>) -> Table {
    let reader = reader.at("routes");
    if file.is_empty() {
        let own_route = |name: &str| provider::own_route(name, known.sections.get(name)?);
        let of = |role| known.targets.iter().map(|settings| &settings.target).filter(move |target| target.role == role);
        let own = of(Role::Identity).filter_map(|target| own_route(&target.name)).collect();
        let identity = of(Role::Identity).filter(|target| own_route(&target.name).is_none());
        let names = |targets: &mut dyn Iterator<Item = &Target>| targets.map(|target| target.name.clone()).collect();
        return Table::mode2(own, names(&mut { identity }), names(&mut of(Role::Handler)));
    }
    let routes = file.iter().enumerate().filter_map(|(index, file)| route(&reader.nth(index), file, known)).collect();
    let mut otherwise = file.iter().enumerate().filter(|(_, route)| route.otherwise.is_some());
    if otherwise.next().is_none() {
        reader.warn(format_args!("without `otherwise = true` an event that matches no route is delivered nowhere"));
    }
    for (index, _) in otherwise {
        reader.nth(index).warn(format_args!("never used, since an earlier `otherwise` matches everything"));
    }
    Table::new(routes)
}

fn route(reader: &KeyReader<'_>, file: &file::RouteSection, known: &KnownTargets<'_>) -> Option<Route> {
    let when = when(reader, file);
    let to = targets(&reader.at("to"), file, known);
    let reply = file.reply.as_ref().and_then(|reply| reply_rule(&reader.at("reply"), reply, file, known));
    let route = Route { when: when?, to, reply };
    for section in route.to.iter().filter_map(|name| known.sections.get(&**name)) {
        provider::check_route(reader, section, &route);
    }
    Some(route)
}

fn when(reader: &KeyReader<'_>, file: &file::RouteSection) -> Option<When> {
    match (&file.r#match, &file.otherwise) {
        (Some(patterns), None) => Some(When::Match(conditions::read(&reader.at("match"), patterns))),
        (None, Some(_)) => reader.read("otherwise", &file.otherwise, value::yes).map(|()| When::Otherwise),
        (Some(_), Some(_)) => {
            reader.report(Problem::expected("`match` and `otherwise` exclude each other", "only one of them"));
            None
        }
        (None, None) => {
            reader.at("match").report(Problem::Missing("conditions for the route, or `otherwise = true`"));
            None
        }
    }
}

fn targets(reader: &KeyReader<'_>, file: &file::RouteSection, known: &KnownTargets<'_>) -> Vec<Arc<str>> {
    let Some(list) = &file.to else {
        if file.reply.is_none() {
            reader.report(Problem::Missing("the names of targets, or [] for none"));
        }
        return Vec::new();
    };
    for (index, name) in list.0.iter().enumerate() {
        check_target(&reader.nth(index), name, known);
    }
    list.0.iter().map(|name| name.as_str().into()).collect()
}

fn check_target(reader: &KeyReader<'_>, name: &str, known: &KnownTargets<'_>) {
    if !known.names.contains(&name) {
        let nearest = nearest(name, known.names.iter().copied());
        reader.report(Problem::UnknownTarget { name: name.to_owned(), nearest });
    }
}

/// The sources of the reply, by priority; a fixed reply can only be the last.
fn reply_rule(
    reader: &KeyReader<'_>,
    reply: &file::ReplySection,
    route: &file::RouteSection,
    known: &KnownTargets<'_>,
) -> Option<ReplyRule> {
    let answerers: Vec<_> = match reply {
        file::ReplySection::One(answerer) => vec![(reader.clone(), answerer)],
        file::ReplySection::List(list) => {
            list.iter().enumerate().map(|(index, one)| (reader.nth(index), one)).collect()
        }
    };
    if answerers.is_empty() {
        reader.report(Problem::Missing("at least one target or a fixed reply"));
    }
    let mut rule = ReplyRule { asked: Vec::new(), fixed: None };
    for (reader, answerer) in answerers {
        if rule.fixed.is_some() {
            let broken = "never used, since the fixed reply before it always replies";
            reader.report(Problem::action(broken, "put the fixed reply at the end"));
        }
        match answerer {
            ReplierSection::Target(name) => {
                check_replier(&reader, name, route, known);
                if rule.asked.iter().any(|asked| **asked == **name) {
                    reader.report(Problem::expected("named twice in this list", "each target once"));
                }
                rule.asked.push(name.as_str().into());
            }
            ReplierSection::Fixed(fixed) => rule.fixed = Some(fixed_reply::read(&reader, fixed)?),
        }
    }
    Some(rule)
}

fn check_replier(reader: &KeyReader<'_>, name: &str, route: &file::RouteSection, known: &KnownTargets<'_>) {
    let named = route.to.as_ref().is_some_and(|list| list.0.iter().any(|target| target == name));
    if !known.names.contains(&name) {
        check_target(reader, name, known);
    } else if !named {
        reader.report(Problem::action("this route does not send to this target, so it cannot reply", "add it to `to`"));
    }
}
