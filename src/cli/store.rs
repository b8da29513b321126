//! Changes of the store by commands: in this process while no relay runs, else through the relay that has it open.

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::access::Access;
use super::steps::Executor;
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::queue::{self, Queue, Sweep};

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
pub(super) async fn sweep(access: &Access, sweep: Sweep, request: SweepRequest<'_>) -> anyhow::Result<u64> {
    let executor = Executor::of(access)?;
    let queue = match executor {
        Executor::Local(queue) => queue,
        Executor::Relay(api) => {
            let answer = api.post(&request.path, request.body.as_ref()).await?;
            return answer[request.count].as_u64().context("the relay's answer has no count");
        }
    };
    let changed = queue.sweep_all(sweep, UnixMillis::now()).await;
    queue.close().await;
    Ok(changed?)
}

/// The targets that are configured or have deliveries.
pub(super) async fn known_targets(access: &Access) -> anyhow::Result<Vec<String>> {
    Ok(access.targets().await?.into_iter().map(|target| target.name).collect())
}

/// Fails for a target that is neither configured nor in the store: a misspelt name is an error, not a target without
/// deliveries.
pub(super) async fn expect_known(access: &Access, name: &str) -> anyhow::Result<()> {
    expect(name, known_targets(access).await?)
}

/// Fails for a target that is not configured.
pub(super) async fn expect_configured(access: &Access, name: &str) -> anyhow::Result<()> {
    let targets = match access {
        Access::Store(config) => config.targets.iter().map(|settings| settings.target.name.to_string()).collect(),
        Access::Relay(_) => {
            access.targets().await?.into_iter().filter(|target| target.configured).map(|target| target.name).collect()
        }
    };
    expect(name, targets)
}

fn expect(name: &str, mut known: Vec<String>) -> anyhow::Result<()> {
    if !known.iter().any(|one| one == name) {
        known.sort_unstable();
        bail!("there is no target `{name}`; expected one of: {}", known.join(", "));
    }
    Ok(())
}
