//! Warns of backends whose answers, as the store recorded them, come later than WeChat waits, where nothing is set up
//! for that.

use std::time::Duration;

use crate::config::Config;
use crate::deliver::{Format, Tries};
use crate::push::Account;
use crate::queue::{Engine, EventFilter, Inspect};

/// How many of the newest events of a target are read.
const SAMPLE: usize = 50;

/// One warning for each target and account. Empty where the store cannot be read: other commands say why. A store in
/// PostgreSQL is read with `online` only.
pub(super) async fn find(config: &Config, online: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let suspects: Vec<_> = config.accounts.iter().flat_map(|account| suspects(config, account)).collect();
    let is_local = matches!(config.queue.engine, Engine::Embedded { .. });
    if suspects.is_empty() || !(is_local || online) {
        return warnings;
    }
    let Ok(store) = Inspect::open(&config.queue).await else { return warnings };
    for (account, target) in suspects {
        let took = first_answers(&store, &account.name, target).await;
        let late: Vec<_> = took.iter().filter(|took| **took > account.reply_budget).collect();
        if let Some(slowest) = late.iter().max() {
            warnings.push(format!(
                "targets.{target}: {} of its last {} answers took longer than accounts.{}.reply_budget ({}), up to {:.1}s: \
                 such replies reach nobody; set reply_window or held_replies, and tries = \"each\" if it counts on WeChat's \
                 retries",
                late.len(),
                took.len(),
                account.name,
                humantime::format_duration(account.reply_budget),
                slowest.as_secs_f64(),
            ));
        }
    }
    warnings
}

/// The targets that reply for an account as a backend of WeChat would, and whose late replies are lost.
fn suspects<'c>(config: &'c Config, account: &'c Account) -> impl Iterator<Item = (&'c Account, &'c str)> {
    let targets = config.targets.iter().map(|settings| &settings.target);
    targets
        .filter(|target| matches!(target.format, Format::Raw | Format::Wechat) && target.tries == Tries::Once)
        .filter(|target| account.reply_window.is_none() && account.held.is_none() && account.routes.asks(&target.name))
        .map(move |target| (account, &*target.name))
}

/// How long the target took to answer the first attempts at the newest events.
async fn first_answers(store: &Inspect, account: &str, target: &str) -> Vec<Duration> {
    let filter = EventFilter {
        account: Some(account.to_owned()),
        target: Some(target.to_owned()),
        limit: SAMPLE,
        ..EventFilter::default()
    };
    let mut took = Vec::new();
    for event in store.events(&filter).await.unwrap_or_default() {
        let Ok(Some(event)) = store.event(event.id).await else { continue };
        let delivery = event.deliveries.into_iter().find(|delivery| delivery.target == target);
        let first = delivery.and_then(|delivery| delivery.attempts.into_iter().next());
        took.extend(first.map(|attempt| Duration::from_secs_f64(attempt.duration_ms.max(0.0) / 1e3)));
    }
    took
}
