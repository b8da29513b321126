//! Changes of the store by commands: in this process while no relay runs, else through the relay that has it open.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::api::Api;
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::queue::{self, Inspect, Queue, Sweep};

/// A request for the relay: path, body, and the key of the count in its response.
pub(super) struct SweepRequest<'r> {
    pub(super) path: String,
    pub(super) body: Option<Value>,
    pub(super) count: &'r str,
}

/// Opens the store; `None` if a relay has it open.
pub(super) fn open(config: &Config) -> anyhow::Result<Option<Queue>> {
    let queue = match Queue::open(&config.queue, |_| {}) {
        Ok(queue) => queue,
        Err(queue::Error::Locked { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    for settings in &config.targets {
        queue.keep_order(&settings.target.name, settings.order);
    }
    Ok(Some(queue))
}

/// Runs a whole sweep. Returns how many deliveries changed.
pub(super) async fn sweep(config: &Config, sweep: Sweep, request: SweepRequest<'_>) -> anyhow::Result<u64> {
    let Some(queue) = open(config)? else {
        let answer = Api::of(config)?.post(&request.path, request.body.as_ref()).await?;
        return answer[request.count].as_u64().context("the relay's answer has no count");
    };
    let changed = queue.sweep_all(sweep, UnixMillis::now()).await;
    queue.close().await;
    Ok(changed?)
}

/// The targets with deliveries in the store.
pub(super) fn stored_targets(config: &Config) -> anyhow::Result<Vec<String>> {
    Ok(Inspect::open(&config.queue.path)?.stats()?.targets.into_iter().map(|stats| stats.target).collect())
}

/// Fails for a target that is neither configured nor in the store: a misspelt name is an error, not a target without
/// deliveries.
pub(super) fn expect_known(config: &Config, name: &str) -> anyhow::Result<()> {
    expect(name, stored_targets(config)?.into_iter().chain(configured_targets(config)))
}

/// Fails for a target that is not configured.
pub(super) fn expect_configured(config: &Config, name: &str) -> anyhow::Result<()> {
    expect(name, configured_targets(config))
}

fn configured_targets(config: &Config) -> impl Iterator<Item = String> {
    config.targets.iter().map(|settings| settings.target.name.to_string())
}

fn expect(name: &str, known: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let known: BTreeSet<_> = known.collect();
    if !known.contains(name) {
        let known: Vec<_> = known.into_iter().collect();
        bail!("there is no target `{name}`; expected one of: {}", known.join(", "));
    }
    Ok(())
}
