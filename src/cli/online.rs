//! Asks every target whether it is there: what `check --online` adds to `check`.
//!
//! A `wechat` target is sent the verification that WeChat would send, once for each token that it may be asked with;
//! every other one is connected to. No target gets an event. All are asked at the same time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::target_problem::TargetProblem;
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::deliver::{ClientError, Format, SystemRoots, Target, Upstream};

/// What came back from one target.
#[derive(Debug)]
pub struct Finding {
    /// The target.
    pub target: Arc<str>,
    /// What was tried.
    pub check: Check,
    /// How long it took, or what was wrong.
    pub result: Result<Duration, TargetProblem>,
}

/// What is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// WeChat's GET verification, signed with the target's own token, or else with that of this account.
    Verification(Option<Arc<str>>),
    /// A connection, TLS included.
    Connection,
}

/// Asks all targets, and tells what came back in the order of the configuration.
pub async fn probe(config: &Config) -> Vec<Finding> {
    let (mut asked, trust) = (JoinSet::new(), SystemRoots::default());
    for settings in &config.targets {
        for (check, account) in checks(config, &settings.target) {
            let accounts = config.accounts.iter().map(|account| (&account.name, &account.credentials));
            let upstream = Upstream::new(settings.target.clone(), accounts, &trust);
            let (target, index) = (Arc::clone(&settings.target.name), asked.len());
            asked.spawn(
                async move { (index, Finding { target, result: ask(upstream, &check, &account).await, check }) },
            );
        }
    }
    let mut findings = asked.join_all().await;
    findings.sort_by_key(|(index, _)| *index);
    findings.into_iter().map(|(_, finding)| finding).collect()
}

async fn ask(upstream: Result<Upstream, ClientError>, check: &Check, account: &str) -> Result<Duration, TargetProblem> {
    Ok(match check {
        Check::Verification(_) => upstream?.verify(account, UnixMillis::now()).await?.took,
        Check::Connection => upstream?.connect().await?,
    })
}

/// What to try at a target, with the account to try it for. A `wechat` target without a token of its own is asked with
/// the token of every account whose events it gets.
pub(super) fn checks(config: &Config, target: &Target) -> Vec<(Check, Arc<str>)> {
    let names = |target: &Target| {
        let routed = config.accounts.iter().filter(|account| {
            account.routes.routes().iter().any(|route| route.to.iter().any(|name| **name == *target.name))
        });
        let routed: Vec<_> = routed.map(|account| Arc::clone(&account.name)).collect();
        let any = config.accounts.first().map(|account| Arc::clone(&account.name));
        if routed.is_empty() { any.into_iter().collect() } else { routed }
    };
    match (target.format, &target.credentials.token) {
        (Format::Wechat, None) => {
            names(target).into_iter().map(|name| (Check::Verification(Some(Arc::clone(&name))), name)).collect()
        }
        (Format::Wechat, Some(_)) => {
            names(target).into_iter().take(1).map(|name| (Check::Verification(None), name)).collect()
        }
        (Format::Raw | Format::Json | Format::CloudEvents | Format::AuthingJson, _) => {
            vec![(Check::Connection, Arc::from(""))]
        }
    }
}

impl Finding {
    /// The same for scripts.
    pub fn to_json(&self) -> Value {
        let (check, account) = match &self.check {
            Check::Verification(account) => ("verification", account.as_deref()),
            Check::Connection => ("connection", None),
        };
        json!({
            "target": &*self.target, "check": check, "account": account, "ok": self.result.is_ok(),
            "took_ms": self.result.as_ref().ok().map(Duration::as_millis).map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            "problem": self.result.as_ref().err().map(ToString::to_string),
        })
    }
}

/// One line for people.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, check, result } = self;
        write!(f, "target {target}: ")?;
        match (check, result) {
            (Check::Verification(_), Ok(_)) => f.write_str("ok, takes WeChat's verification")?,
            (Check::Verification(_), Err(_)) => f.write_str("NOT OK, WeChat's verification")?,
            (Check::Connection, Ok(_)) => f.write_str("ok, can be connected to (no event sent)")?,
            (Check::Connection, Err(_)) => f.write_str("NOT OK")?,
        }
        if let Check::Verification(Some(account)) = check {
            write!(f, " by the token of account {account}")?;
        }
        match result {
            Ok(took) => write!(f, ", {} ms", took.as_millis()),
            Err(problem) => write!(f, ": {problem}"),
        }
    }
}
