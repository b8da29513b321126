//! Checks that need several sections together.

use super::error::Problem;
use super::key_reader::KeyReader;
use crate::deliver::{Format, Role, Tries};
use crate::dispatcher::TargetSettings;
use crate::push::Account;
use crate::queue::{self, DeliveryOrder};
use crate::route::Route;
use crate::wechat::Mode;

/// Warns of settings that contradict each other about how long a push is recognised.
pub(super) fn windows(reader: &KeyReader<'_>, accounts: &[Account], queue: &queue::Settings) {
    let words = |span| humantime::format_duration(span);
    let (retention, kept) = (queue.retention, queue.retention.max(queue.dedup_window));
    if retention < queue.dedup_window {
        reader.at("queue").at("retention").warn(format_args!(
            "shorter than dedup_window ({}), for which finished events are kept all the same",
            words(queue.dedup_window)
        ));
    }
    for account in accounts {
        let reader = reader.at("accounts").at(&account.name);
        match account.max_skew {
            None => reader.at("max_skew").warn(format_args!(
                "off, so a captured push that is sent again after {} is another event",
                words(kept)
            )),
            Some(skew) if kept < skew * 2 => reader.at("max_skew").warn(format_args!(
                "a push is accepted for {} (twice max_skew), but its event may be deleted after {} (queue.retention): \
                 one sent again is recognised, but does not get the first reply",
                words(skew * 2),
                words(kept)
            )),
            Some(_) => {}
        }
    }
}

/// Warns of `order` and `rate` that cannot hold, as another target delivers to the same URL.
pub(super) fn shared_urls(reader: &KeyReader<'_>, targets: &[TargetSettings]) {
    for (index, settings) in targets.iter().enumerate() {
        let is_same = |other: &&TargetSettings| other.target.url == settings.target.url;
        let mut others = targets.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, other)| other);
        let Some(other) = others.find(is_same) else { continue };
        let (reader, other) = (reader.at(&settings.target.name), &other.target.name);
        if settings.order == DeliveryOrder::PerUser {
            reader
                .at("order")
                .warn(format_args!("targets.{other} has the same url, and its events keep no order with these"));
        }
        if settings.rate.is_some() {
            reader.at("rate").warn(format_args!("targets.{other} has the same url, and its attempts are not counted"));
        }
    }
}

/// Checks that need accounts and targets together.
pub(super) fn references(reader: &KeyReader<'_>, accounts: &[Account], targets: &[TargetSettings]) {
    let named = |account: &Account, target: &str| {
        let in_route = |route: &Route| route.to.iter().any(|name| &**name == target);
        account.routes.routes().iter().any(in_route)
    };
    if targets.is_empty() {
        reader.warn(format_args!("none, so events are stored and delivered nowhere"));
    } else if targets.iter().all(|settings| settings.target.role != Role::Identity) {
        reader.warn(format_args!("none has role = \"identity\", so no identity provider receives scans and follows"));
    }
    for settings in targets {
        let target = &settings.target;
        let reader = reader.at(&target.name);
        let routing: Vec<_> = accounts.iter().filter(|account| named(account, &target.name)).collect();
        if routing.is_empty() {
            reader.warn(format_args!("no route names it, so it receives nothing"));
        }
        let lacks_key = |account: &&Account| {
            let mode = target.credentials.mode.unwrap_or(account.credentials.mode);
            let key = target.credentials.aes_key.as_ref().or(account.credentials.aes_key.as_ref());
            mode != Mode::Plaintext && key.is_none()
        };
        let gets_each = target.tries != Tries::Once;
        if gets_each && !routing.iter().any(|account| account.routes.asks(&target.name)) {
            reader.at("tries").warn(format_args!("no route asks this target for a reply, so it gets each event once"));
        }
        for account in &routing {
            let replies = account.routes.asks(&target.name);
            if replies && gets_each && account.reply_window.is_none() && account.held.is_none() {
                reader.at("tries").warn(format_args!(
                    "accounts.{0}.reply_window and accounts.{0}.held_replies are off, so replies of later tries are lost",
                    account.name
                ));
            }
            if replies && settings.order == DeliveryOrder::PerUser {
                reader.at("order").warn(format_args!(
                    "accounts.{} waits for its replies: while an event of a user is retried, the user's next ones get none",
                    account.name
                ));
            }
            if replies && account.reply_window.is_some_and(|window| target.timeout < window.length) {
                reader.at("timeout").warn(format_args!(
                    "shorter than accounts.{}.reply_window: its later replies are lost",
                    account.name
                ));
            }
        }
        if target.format == Format::Wechat && routing.into_iter().any(|account| lacks_key(&account)) {
            let expected =
                "a key, since mode is \"compatible\" or \"secure\" and an account that routes to it has none";
            reader.at("encoding_aes_key").report(Problem::Missing(expected));
        }
    }
}
