//! What several replicas make of a configuration: each target's concurrency divided, and reply windows that no replica has
//! a failure for. For `check --online`.

use serde_json::{Value, json};

use crate::config::Config;
use crate::queue::{Replica, Share};

/// The shares of the live replicas.
pub(super) struct Shares {
    live: Vec<(String, String)>,
    targets: Vec<(String, Vec<usize>)>,
    /// Accounts whose windows are closed, with their failures.
    closed: Vec<(String, usize)>,
    differing: Vec<String>,
}

impl Shares {
    pub(super) fn of(config: &Config, replicas: &[Replica]) -> Self {
        let live: Vec<_> = replicas.iter().filter(|replica| replica.live).collect();
        let count = u32::try_from(live.len()).unwrap_or(u32::MAX).max(1);
        let parts = |whole| (0..count).map(|rank| Share::new(rank, count).of(whole)).collect();
        let targets =
            config.targets.iter().map(|settings| (settings.target.name.to_string(), parts(settings.concurrency)));
        let failures = config.accounts.iter().filter_map(|account| Some((account, account.reply_window?.failures)));
        let closed = failures.filter(|(_, failures)| *failures < count as usize);
        let differs = |replica: &&&Replica| replica.config_sha256 != config.shared_sha256;
        Self {
            targets: targets.collect(),
            closed: closed.map(|(account, failures)| (account.name.to_string(), failures)).collect(),
            differing: live.iter().filter(differs).map(|replica| replica.name.clone()).collect(),
            live: live.into_iter().map(|replica| (replica.name.clone(), replica.release.clone())).collect(),
        }
    }

    /// One fact per line.
    pub(super) fn lines(&self) -> Vec<String> {
        let count = self.live.len();
        let names: Vec<_> = self.live.iter().map(|(name, release)| format!("{name} ({release})")).collect();
        let names = if names.is_empty() { "none is alive".to_owned() } else { names.join(", ") };
        let mut lines = vec![format!("replicas: {names}")];
        if count > 1 {
            lines.extend(self.targets.iter().map(|(name, parts)| {
                let whole: usize = parts.iter().sum();
                let parts = parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                format!("target {name}: concurrency {whole} among {count} replicas: {parts}")
            }));
        }
        lines.extend(self.closed.iter().map(|(account, failures)| {
            format!(
                "account {account}: warning, the reply window stays closed: {failures} failures among {count} replicas; \
                 raise reply_window_failures"
            )
        }));
        lines.extend(self.differing.iter().map(|name| {
            format!("replica {name}: warning, its accounts, routes, targets or logins are not those of this file")
        }));
        lines
    }

    pub(super) fn to_json(&self) -> Value {
        let named = |pairs: &[(String, Vec<usize>)]| -> Vec<Value> {
            pairs.iter().map(|(name, parts)| json!({ "target": name, "concurrency": parts })).collect()
        };
        json!({
            "live": self.live.iter().map(|(name, release)| json!({ "name": name, "release": release })).collect::<Vec<_>>(),
            "shares": named(&self.targets),
            "closed_reply_windows": self.closed.iter().map(|(account, _)| account).collect::<Vec<_>>(),
            "differing": self.differing,
        })
    }
}
