//! Probes every target: what `check --online` adds to `check`.
//!
//! A `wechat` target gets WeChat's verification, once for each token that it shares; to any other target the command
//! only connects. No target gets an event. All are probed concurrently.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::clock::UnixMillis;
use crate::config::Config;
use crate::deliver::{ClientError, Format, SystemRoots, Target, TargetProblem, Upstream};
use crate::ordered;

#[derive(Debug)]
pub struct ProbeResult {
    pub target: Arc<str>,
    pub kind: ProbeKind,
    /// The duration of the probe, or the problem.
    pub result: Result<Duration, TargetProblem>,
}

/// How a target is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// WeChat's GET verification, signed with the target's own token, else with the token of this account.
    Verification(Option<Arc<str>>),
    /// A connection, TLS included.
    Connection,
}

/// Probes all targets; the results are in the order of the configuration.
pub async fn probe_targets(config: &Config) -> Vec<ProbeResult> {
    let (mut asked, trust) = (JoinSet::new(), SystemRoots::default());
    for settings in &config.targets {
        for (kind, account) in probes(config, &settings.target) {
            let accounts = config.accounts.iter().map(|account| (&account.name, &account.credentials));
            let upstream = Upstream::new(settings.target.clone(), accounts, &trust);
            let (target, index) = (Arc::clone(&settings.target.name), asked.len());
            asked.spawn(async move {
                (index, ProbeResult { target, result: run_probe(upstream, &kind, &account).await, kind })
            });
        }
    }
    let mut findings = asked.join_all().await;
    ordered::sort(&mut findings, |one, other| one.0.cmp(&other.0));
    findings.into_iter().map(|(_, finding)| finding).collect()
}

async fn run_probe(
    upstream: Result<Upstream, ClientError>,
    kind: &ProbeKind,
    account: &str,
) -> Result<Duration, TargetProblem> {
    Ok(match kind {
        ProbeKind::Verification(_) => upstream?.verify(account, UnixMillis::now()).await?.took,
        ProbeKind::Connection => upstream?.connect().await?,
    })
}

/// The probes of a target, each with its account. A `wechat` target without a token of its own is probed with the token
/// of every account that routes to it.
pub(super) fn probes(config: &Config, target: &Target) -> Vec<(ProbeKind, Arc<str>)> {
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
            names(target).into_iter().map(|name| (ProbeKind::Verification(Some(Arc::clone(&name))), name)).collect()
        }
        (Format::Wechat, Some(_)) => {
            names(target).into_iter().take(1).map(|name| (ProbeKind::Verification(None), name)).collect()
        }
        (Format::Raw | Format::Json | Format::CloudEvents | Format::AuthingJson, _) => {
            vec![(ProbeKind::Connection, Arc::from(""))]
        }
    }
}

impl ProbeResult {
    pub fn to_json(&self) -> Value {
        let (check, account) = match &self.kind {
            ProbeKind::Verification(account) => ("verification", account.as_deref()),
            ProbeKind::Connection => ("connection", None),
        };
        json!({
            "target": &*self.target, "check": check, "account": account, "ok": self.result.is_ok(),
            "took_ms": self.result.as_ref().ok().map(Duration::as_millis).map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            "problem": self.result.as_ref().err().map(ToString::to_string),
        })
    }
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, kind, result } = self;
        write!(f, "target {target}: ")?;
        match (kind, result) {
            (ProbeKind::Verification(_), Ok(_)) => f.write_str("ok, accepts WeChat's verification")?,
            (ProbeKind::Verification(_), Err(_)) => f.write_str("NOT OK, WeChat's verification")?,
            (ProbeKind::Connection, Ok(_)) => f.write_str("ok, accepts connections (no event sent)")?,
            (ProbeKind::Connection, Err(_)) => f.write_str("NOT OK")?,
        }
        if let ProbeKind::Verification(Some(account)) = kind {
            write!(f, " with the token of account {account}")?;
        }
        match result {
            Ok(took) => write!(f, ", {} ms", took.as_millis()),
            Err(problem) => write!(f, ": {problem}"),
        }
    }
}
