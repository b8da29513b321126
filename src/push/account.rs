//! The accounts that pushes are accepted for, by path, each with its metrics, failure budget and log throttles.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::sources::AllowFrom;
use super::window::{FailureBudget, ReplyWindow};
use crate::metrics::{AccountMetrics, Metrics};
use crate::queue::Share;
use crate::route;
use crate::telemetry::{LogThrottle, OpenIds};
use crate::wechat::{Credentials, LongText, ReplyBody};

/// The most log lines in ten seconds, per account, about requests that fail verification or decryption: enough for all
/// of WeChat's while the token is wrong, and too few to fill a disk.
const REFUSAL_LOG_LINES: u32 = 100;

/// One `[accounts.NAME]` of the configuration.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The path of its server URL, without a trailing slash.
    pub path: String,
    pub credentials: Credentials,
    /// How far a push's timestamp may be from our clock; `None` = any distance.
    pub max_skew: Option<Duration>,
    /// The latest time after its arrival at which a push is answered.
    pub reply_budget: Duration,
    /// The time within which a late reply may answer WeChat's 2nd or 3rd try; `None` = never.
    pub reply_window: Option<ReplyWindow>,
    /// What is done with a reply's text that is too long.
    pub long_text: LongText,
    /// How replies wait for the user's next message; `None` = they do not.
    pub held: Option<HeldReplies>,
    /// Where its pushes are expected from; `None` = anywhere.
    pub allow_from: Option<AllowFrom>,
    /// Which targets an event goes to, and which of them replies.
    pub routes: route::Table,
}

/// `held_replies` of an account, with what belongs to it.
#[derive(Clone, Debug)]
pub struct HeldReplies {
    /// How long a reply waits.
    pub keep: Duration,
    /// What WeChat's last try is answered while the reply may still come; `None` = nothing.
    pub prompt: Option<ReplyBody>,
    /// What a message that asks for a reply is answered after none came; `None` = it is a message like others.
    pub none: Option<ReplyBody>,
    /// The text messages that ask for a reply.
    pub pickup: route::Patterns,
}

impl Account {
    /// Whether a push is fresh whose timestamp differs from our clock by this many seconds.
    pub(super) fn allows_skew(&self, seconds: i64) -> bool {
        self.max_skew.is_none_or(|max| seconds.unsigned_abs() <= max.as_secs())
    }
}

/// The accounts that pushes are accepted for: replaced as a whole when the configuration changes.
pub struct Accounts {
    by_path: HashMap<String, Arc<ServedAccount>>,
    pub(super) openids: OpenIds,
}

/// An account with the state that its pushes share.
pub(super) struct ServedAccount {
    pub(super) account: Account,
    pub(super) metrics: AccountMetrics,
    pub(super) budget: Arc<FailureBudget>,
    /// Limits log lines about requests from outside `allow_from`.
    pub(super) unlisted_throttle: LogThrottle,
    /// Limits log lines about requests that fail verification or decryption.
    pub(super) refusal_throttle: LogThrottle,
    pub(super) failures: FailureThrottles,
}

/// Limits the log lines about verified pushes that fail, each kind by itself: while a store is full or a disk stalls
/// each push fails, and one line in ten seconds with the count of the others says as much.
#[derive(Debug, Default)]
pub(super) struct FailureThrottles {
    pub(super) unstored: LogThrottle,
    pub(super) reply_unstored: LogThrottle,
    pub(super) reply_illegal: LogThrottle,
    pub(super) held_unread: LogThrottle,
    unavailable: LogThrottle,
    late: LogThrottle,
    other: LogThrottle,
}

impl FailureThrottles {
    /// The throttle of the request lines with that result.
    pub(super) fn of_result(&self, result: &str) -> &LogThrottle {
        match result {
            "unavailable" => &self.unavailable,
            "late" => &self.late,
            _ => &self.other,
        }
    }
}

impl Accounts {
    /// Accounts by their paths.
    pub fn new(accounts: Vec<Account>, openids: OpenIds, metrics: &Metrics) -> Self {
        let serve = |account: Account| {
            let metrics = metrics.account(&account.name);
            let budget = FailureBudget::new(account.name.clone(), metrics.clone());
            let path = account.path.clone();
            let (unlisted_throttle, refusal_throttle) =
                (LogThrottle::default(), LogThrottle::at_most(REFUSAL_LOG_LINES));
            let failures = FailureThrottles::default();
            (path, Arc::new(ServedAccount { account, metrics, budget, unlisted_throttle, refusal_throttle, failures }))
        };
        Self { by_path: accounts.into_iter().map(serve).collect(), openids }
    }

    /// Divides the failure budgets among the live replicas.
    pub(super) fn divide(&self, share: Share) {
        for served in self.by_path.values() {
            served.budget.set_replicas(share.live());
        }
    }

    /// Whether one of them keeps replies.
    pub(super) fn keep_replies(&self) -> bool {
        self.by_path.values().any(|served| served.account.held.is_some())
    }

    /// The account of that name.
    pub(super) fn named(&self, name: &str) -> Option<&Arc<ServedAccount>> {
        self.by_path.values().find(|served| *served.account.name == *name)
    }

    pub(super) fn at(&self, path: &str) -> Option<Arc<ServedAccount>> {
        self.by_path.get(path.trim_end_matches('/')).cloned()
    }

    /// Starts the failure budgets, of each of which this process has its share. An account that was in `previous` keeps
    /// its budget, so that no failure is forgotten.
    pub(super) fn with_budgets_of(mut self, previous: Option<&Self>, share: Share) -> Self {
        let mut old: HashMap<&str, &Arc<FailureBudget>> = HashMap::new();
        for served in previous.into_iter().flat_map(|previous| previous.by_path.values()) {
            old.insert(&served.account.name, &served.budget);
        }
        for served in self.by_path.values_mut().filter_map(Arc::get_mut) {
            if let Some(budget) = old.remove(&*served.account.name) {
                served.budget = budget.clone();
            }
            served.budget.set_window(served.account.reply_window);
            served.metrics.keep_replies(served.account.held.is_some());
        }
        self.divide(share);
        for removed in old.into_values() {
            removed.end();
        }
        self
    }
}
