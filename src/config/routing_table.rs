//! The routing table of a configuration as data: accounts with their routes, targets with their schedules.
//!
//! It has the full URL of every target, which is a secret for identity providers: show it to an operator, never log it.

use std::time::Duration;

use super::{Config, targets};
use crate::deliver::{Role, Tries};
use crate::dispatcher::TargetSettings;
use crate::push::{Account, ReplyWindow};
use crate::route::{Route, When};
use crate::wechat::{Mode, ReplyBody};

/// Every account and every target, by name.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    pub accounts: Vec<AccountEntry>,
    pub targets: Vec<TargetEntry>,
}

/// An account and its routes.
#[derive(Clone, Debug)]
pub struct AccountEntry {
    pub name: String,
    /// The path of the server URL; `/` for the root.
    pub path: String,
    pub app_id: String,
    pub mode: Mode,
    /// How long the answer to a push waits for a reply.
    pub reply_budget: Duration,
    /// How long a late reply can still reach the user, by WeChat's retries.
    pub reply_window: Option<ReplyWindow>,
    /// In the order of evaluation; the first that matches is used.
    pub routes: Vec<RouteEntry>,
}

/// One route.
#[derive(Clone, Debug)]
pub struct RouteEntry {
    /// Key and patterns, all of which must match; `None` for `otherwise`.
    pub conditions: Option<Vec<(&'static str, String)>>,
    /// The targets that get the event.
    pub to: Vec<String>,
    /// The sources of the reply, by priority; empty if nothing replies.
    pub reply: Vec<ReplySource>,
}

#[derive(Clone, Debug)]
pub enum ReplySource {
    Target(String),
    Fixed(ReplyBody),
}

/// A target and its schedule.
#[derive(Clone, Debug)]
pub struct TargetEntry {
    pub name: String,
    pub role: Role,
    pub url: String,
    /// The format's name in the configuration.
    pub format: &'static str,
    pub timeout: Duration,
    pub tries: Tries,
    pub concurrency: usize,
    /// The waits between attempts.
    pub retry: Vec<Duration>,
    /// Whether the last wait repeats until the delivery expires.
    pub retry_repeats: bool,
    pub expire_after: Option<Duration>,
}

impl RoutingTable {
    /// The routing table that a configuration makes.
    pub fn of(config: &Config) -> Self {
        Self {
            accounts: config.accounts.iter().map(AccountEntry::of).collect(),
            targets: config.targets.iter().map(TargetEntry::of).collect(),
        }
    }
}

impl AccountEntry {
    fn of(account: &Account) -> Self {
        Self {
            name: account.name.to_string(),
            path: if account.path.is_empty() { "/".to_owned() } else { account.path.clone() },
            app_id: account.credentials.app_id.to_string(),
            mode: account.credentials.mode,
            reply_budget: account.reply_budget,
            reply_window: account.reply_window,
            routes: account.routes.routes().iter().map(RouteEntry::of).collect(),
        }
    }
}

impl RouteEntry {
    fn of(route: &Route) -> Self {
        let conditions = match &route.when {
            When::Otherwise => None,
            When::Match(patterns) => {
                let given = patterns.keys().into_iter();
                Some(given.filter_map(|(key, patterns)| Some((key, patterns?.to_string()))).collect())
            }
        };
        let reply = route.reply.iter().flat_map(|rule| {
            let targets = rule.asked.iter().map(|name| ReplySource::Target(name.to_string()));
            targets.chain(rule.fixed.clone().map(ReplySource::Fixed))
        });
        Self { conditions, to: route.to.iter().map(ToString::to_string).collect(), reply: reply.collect() }
    }
}

impl TargetEntry {
    fn of(settings: &TargetSettings) -> Self {
        let (target, waits) = (&settings.target, settings.retry.waits());
        let beyond = u32::try_from(waits.len() + 1).unwrap_or(u32::MAX);
        Self {
            name: target.name.to_string(),
            role: target.role,
            url: target.url.to_string(),
            format: targets::format_word(target.format),
            timeout: target.timeout,
            tries: target.tries,
            concurrency: settings.concurrency,
            retry: waits.to_vec(),
            retry_repeats: settings.retry.wait(beyond, 0.5, None).is_some(),
            expire_after: settings.expire_after,
        }
    }
}
