//! Every target: can it be reached, and what does it answer to a request without an event?
//!
//! A `wechat` target is sent the verification that WeChat would, every other one a HEAD. Most handlers refuse a HEAD,
//! which is as good an answer as any: what counts is that somebody answers, and where.

use std::net::ToSocketAddrs;
use std::sync::Arc;

use super::clock::is_here;
use super::report::{Check, Findings, Line, PeerClock};
use super::{LIMIT, all, aside};
use crate::cli::online::{Check as Way, checks};
use crate::cli::target_problem::TargetProblem;
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::deliver::{ClientError, HeadAnswer, Role, SystemRoots, Target, Upstream, Verification};

/// A line for each target, and for each account that a `wechat` target may be asked for.
pub(super) async fn check(config: Arc<Config>) -> Findings {
    let (mut asked, trust) = (Vec::new(), SystemRoots::default());
    for settings in &config.targets {
        for (way, account) in checks(&config, &settings.target) {
            let accounts = config.accounts.iter().map(|account| (&account.name, &account.credentials));
            let upstream = Upstream::new(settings.target.clone(), accounts, &trust);
            asked.push(one(settings.target.clone(), upstream, way, account));
        }
    }
    let mut findings = Findings::default();
    all(asked.into_iter()).await.into_iter().for_each(|found| findings.add(found));
    findings
}

async fn one(target: Target, upstream: Result<Upstream, ClientError>, way: Way, account: Arc<str>) -> Findings {
    let check = Check::new("target", &target.name);
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(error) => return check.failed_with(error.into()).into(),
    };
    let (line, clock) = match way {
        Way::Verification(of) => {
            let by = of.map(|account| format!(" by the token of accounts.{account}")).unwrap_or_default();
            match upstream.verify(&account, UnixMillis::now()).await {
                Err(failure) => {
                    let TargetProblem { text, remedy } = failure.into();
                    let text = format!("WeChat's verification{by}: {text}");
                    (check.failed_with(TargetProblem { text, remedy }), None)
                }
                Ok(Verification { took, date }) => {
                    let text = format!("takes WeChat's verification{by}, {} ms", took.as_millis());
                    (check.ok(text), date.zip(Some(took)))
                }
            }
        }
        Way::Connection => match upstream.send_head().await {
            Err(failure) => (check.failed_with(failure.into()), None),
            Ok(answer) => (judge(&check, &target, &answer), answer.date.zip(Some(answer.took))),
        },
    };
    let mut findings = Findings::from(line);
    if let Some((date, took)) = clock {
        let here = lives_here(&target).await;
        findings.clocks.push(PeerClock::of(format!("target {}", target.name), date, took, here));
    }
    findings
}

/// What a HEAD was answered. No event was sent, so a refusal is no failure; a redirect or a missing page would be one.
fn judge(check: &Check, target: &Target, answer: &HeadAnswer) -> Line {
    let HeadAnswer { status, location, took, .. } = answer;
    let answered = format!("answered {status} to a HEAD (no event sent), {} ms", took.as_millis());
    match status {
        300..=399 => {
            // An identity provider's path is half of a secret.
            let to = location.as_deref().filter(|_| target.role == Role::Handler).map(|to| format!(" to {to}"));
            let text = format!("{answered}: a redirect{}, which the relay does not follow", to.unwrap_or_default());
            check.warning(text, "if it redirects POST as well, put the final URL into `url`")
        }
        404 => check.warning(answered, "if it takes POST alone that may be so; else compare `url` with its path"),
        410 => check.warning(answered, "an event that is answered 410 is a dead letter at once; is `url` still right?"),
        502..=504 => check.failed(answered, "the proxy in front of it does not reach it: is it running?"),
        500 => check.warning(answered, "look into its log: an event would be tried again"),
        _ => check.ok(answered),
    }
}

/// Whether the target runs on this machine. Behind a proxy nobody knows.
async fn lives_here(target: &Target) -> bool {
    let host = target.url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    if target.proxy.is_some() {
        return false;
    }
    let found = aside(LIMIT, move || (host.as_str(), 0).to_socket_addrs().map(Vec::from_iter)).await;
    let addresses = found.and_then(Result::ok).unwrap_or_default();
    !addresses.is_empty() && addresses.iter().all(|address| is_here(address.ip()))
}
