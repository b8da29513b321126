//! What the accounts' routes say about replies, as far as it concerns the attempts that bring them.
//!
//! A reply of a later attempt, which no push waits for, is known by the routes: the store does not say whom a push asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::event::Event;
use crate::route;
use crate::wechat::LongText;

/// The rules of each account that has any beyond the usual.
#[derive(Debug, Default)]
pub struct ReplyRules(HashMap<Arc<str>, AccountReplies>);

/// The rules of one account.
#[derive(Debug)]
pub struct AccountReplies {
    /// What is done with a text that is too long.
    pub long_text: LongText,
    /// How long a reply that nobody waits for is held, and the routes that say who is asked; `None`: not at all.
    pub held: Option<(Duration, route::Table)>,
}

impl ReplyRules {
    /// The rules of accounts by their names.
    pub fn new(accounts: impl IntoIterator<Item = (Arc<str>, AccountReplies)>) -> Arc<Self> {
        Arc::new(Self(accounts.into_iter().collect()))
    }

    /// What is done with a text of the account's that is too long.
    pub(super) fn long_text(&self, account: &str) -> LongText {
        self.0.get(account).map(|account| account.long_text.clone()).unwrap_or_default()
    }

    /// How long a reply of the target to that event is held; `None` where its account keeps none, or no route asks it.
    pub(super) fn keep(&self, event: &Event, target: &str) -> Option<Duration> {
        let (keep, routes) = self.0.get(&event.account)?.held.as_ref()?;
        let plan = routes.plan(&event.message);
        let is_asked = plan.reply.is_some_and(|rule| rule.asked.iter().any(|asked| **asked == *target));
        is_asked.then_some(*keep)
    }
}
