//! Every target: whether it is reachable, and how it answers a request without an event.
//!
//! A `wechat` target gets WeChat's verification, any other a HEAD. Most handlers refuse a HEAD, which is fine: any
//! answer shows that the handler runs.

use std::net::ToSocketAddrs;
use std::sync::Arc;

use super::clock::is_local_address;
use super::report::{CheckResult, CheckResults, DoctorCheck, PeerClock};
use super::{LIMIT, join_ordered, run_detached};
use crate::cli::online::{ProbeKind, probes};
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::deliver::{
    ClientError, HeadAnswer, ProbeReport, SystemRoots, Target, TargetProblem, Upstream, Verification,
};

/// One result for each target, and for each account whose token a `wechat` target shares.
pub(super) async fn check(config: Arc<Config>) -> CheckResults {
    let (mut asked, trust) = (Vec::new(), SystemRoots::default());
    for settings in &config.targets {
        for (kind, account) in probes(&config, &settings.target) {
            let accounts = config.accounts.iter().map(|account| (&account.name, &account.credentials));
            let upstream = Upstream::new(settings.target.clone(), accounts, &trust);
            asked.push(one(settings.target.clone(), upstream, kind, account));
        }
    }
    let mut findings = CheckResults::default();
    join_ordered(asked.into_iter()).await.into_iter().for_each(|found| findings.add(found));
    findings
}

async fn one(
    target: Target,
    upstream: Result<Upstream, ClientError>,
    kind: ProbeKind,
    account: Arc<str>,
) -> CheckResults {
    let check = DoctorCheck::new("target", &target.name);
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(error) => return check.failed_with(TargetProblem::from(error)).into(),
    };
    let (line, clock) = match kind {
        ProbeKind::Verification(of) => {
            let by = of.map(|account| format!(" with the token of accounts.{account}")).unwrap_or_default();
            match upstream.verify(&account, UnixMillis::now()).await {
                Err(failure) => {
                    let TargetProblem { text, remedy } = failure.into();
                    let text = format!("WeChat's verification{by}: {text}");
                    (check.failed_with(TargetProblem { text, remedy }), None)
                }
                Ok(Verification { took, date }) => {
                    let text = format!("accepts WeChat's verification{by}, {} ms", took.as_millis());
                    (check.ok(text), date.zip(Some(took)))
                }
            }
        }
        ProbeKind::Connection => match upstream.send_head().await {
            Err(failure) => (check.failed_with(TargetProblem::from(failure)), None),
            Ok(answer) => (judge(&check, &target, &answer), answer.date.zip(Some(answer.took))),
        },
    };
    let mut findings = CheckResults::from(line);
    if let Some((date, took)) = clock {
        let here = is_local_target(&target).await;
        findings.clocks.push(PeerClock::of(format!("target {}", target.name), date, took, here));
    }
    findings
}

/// Judges the answer to a HEAD.
fn judge(check: &DoctorCheck, target: &Target, answer: &HeadAnswer) -> CheckResult {
    let ProbeReport { ok, text, remedy, .. } = ProbeReport::of_head(target, answer);
    let remedy = remedy.unwrap_or_default();
    match ok {
        Some(true) => check.ok(text),
        Some(false) => check.failed(text, remedy),
        None => check.warning(text, remedy),
    }
}

/// Whether the target runs on this machine. `false` behind a proxy, where it is unknown.
async fn is_local_target(target: &Target) -> bool {
    let host = target.url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    if target.proxy.is_some() {
        return false;
    }
    let found = run_detached(LIMIT, move || (host.as_str(), 0).to_socket_addrs().map(Vec::from_iter)).await;
    let addresses = found.and_then(Result::ok).unwrap_or_default();
    !addresses.is_empty() && addresses.iter().all(|address| is_local_address(address.ip()))
}
