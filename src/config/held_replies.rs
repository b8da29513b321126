//! `held_replies` of an account, with the keys that belong to it, and `long_text`.

use std::sync::Arc;
use std::time::Duration;

use super::error::Problem;
use super::key_reader::KeyReader;
use super::{conditions, file, fixed_reply, value};
use crate::dispatcher::TargetSettings;
use crate::push::{Account, HeldReplies};
use crate::route::{Pattern, Patterns};
use crate::wechat::LongText;

/// What picks a reply up, if nothing else is configured.
const PICKUP: &str = r"re:^\s*(1|more|继续)\s*$";
/// The most bytes of `held_more`: a piece has 2048 in all.
const MAX_MORE: usize = 512;
/// The timeout of a target that is asked for a reply, and the least that does not cut slow answers off.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Reads the keys.
pub(super) fn read(reader: &KeyReader<'_>, file: &file::AccountSection) -> (LongText, Option<HeldReplies>) {
    let keep = reader.read("held_replies", &file.held_replies, value::held_replies).flatten();
    let fixed = |name: &str, given: &Option<_>| given.as_ref().and_then(|one| fixed_reply::read(&reader.at(name), one));
    let (prompt, none) = (fixed("held_prompt", &file.held_prompt), fixed("held_none", &file.held_none));
    let pickup = match &file.held_pickup {
        Some(list) => conditions::patterns(&reader.at("held_pickup"), list, false),
        None => Pattern::parse(PICKUP, false).ok().map(|pattern| Patterns(vec![pattern])),
    };
    let more = |text: &str| {
        let fits = !text.trim().is_empty() && text.len() <= MAX_MORE;
        if fits { Ok(Arc::from(text)) } else { Err("a text of at most 512 bytes") }
    };
    let more: Option<Arc<str>> = reader.read("held_more", &file.held_more, more);
    let split = |text: &str| match text {
        "cut" => Ok(false),
        "split" => Ok(true),
        _ => Err("\"cut\" or \"split\""),
    };
    let split = reader.read("long_text", &file.long_text, split);
    if keep.is_none() {
        if split == Some(true) {
            let broken = "needs held_replies: what is behind the first piece waits for the user's next message";
            reader.at("long_text").report(Problem::action(broken, "set held_replies, or \"cut\""));
        }
        let given = [
            ("held_prompt", file.held_prompt.is_some()),
            ("held_none", file.held_none.is_some()),
            ("held_more", file.held_more.is_some()),
            ("held_pickup", file.held_pickup.is_some()),
        ];
        for (name, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
            reader.at(name).warn(format_args!("not used, since held_replies is off"));
        }
    }
    let long_text = match (keep, split) {
        (Some(_), None | Some(true)) => LongText::Split(more),
        _ => LongText::Cut,
    };
    let pickup = pickup.unwrap_or_else(|| Patterns(Vec::new()));
    (long_text, keep.map(|keep| HeldReplies { keep, prompt, none, pickup }))
}

/// Gives targets that are asked for a reply of an account with `held_replies` the time that it may take, and warns of
/// accounts that hold nothing.
pub(super) fn apply(
    reader: &KeyReader<'_>,
    file: &file::ConfigFile,
    accounts: &[Account],
    targets: &mut [TargetSettings],
) {
    for account in accounts.iter().filter(|account| account.held.is_some()) {
        let rules = || account.routes.routes().iter().filter_map(|route| route.reply.as_ref());
        if rules().all(|rule| rule.asked.is_empty()) {
            reader
                .at("accounts")
                .at(&account.name)
                .at("held_replies")
                .warn(format_args!("no route asks a target for a reply, so none is ever held"));
        }
        for settings in targets.iter_mut() {
            let target = &mut settings.target;
            if !rules().any(|rule| rule.asked.contains(&target.name)) {
                continue;
            }
            let is_given = file.targets.get(&*target.name).is_some_and(|section| section.timeout.is_some());
            if !is_given {
                target.timeout = TIMEOUT;
            } else if target.timeout < TIMEOUT {
                reader.at("targets").at(&target.name).at("timeout").warn(format_args!(
                    "shorter than 60s: a reply that takes longer is lost, although accounts.{} has held_replies",
                    account.name
                ));
            }
        }
    }
}
