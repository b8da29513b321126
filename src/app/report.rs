//! The state of a running relay, for operators and supervisors.

use std::sync::atomic::Ordering;

use super::App;
use crate::admin::{self, QueueTotals};
use crate::clock::UnixMillis;
use crate::config;
use crate::deliver::Format;
use crate::push::Account;
use crate::queue::{self, Engine};

impl App {
    pub(super) fn configured_targets(&self) -> Vec<admin::ConfiguredTarget> {
        let target =
            |name: &str| admin::ConfiguredTarget { name: name.to_owned(), paused: self.dispatcher.is_paused(name) };
        self.config().targets.iter().map(|settings| target(&settings.target.name)).collect()
    }

    /// `None` for a target that is not configured.
    pub(super) fn target_facts(&self, name: &str) -> Option<admin::TargetFacts> {
        let (policy, health) = self.dispatcher.target(name)?;
        let config = self.config();
        let concurrency = config.targets.iter().find(|one| *one.target.name == *name)?.concurrency;
        let routed =
            |account: &&Account| account.routes.routes().iter().any(|route| route.to.iter().any(|to| **to == *name));
        let account = config.accounts.iter().find(routed).or(config.accounts.first());
        let format = policy.upstream.target().format;
        Some(admin::TargetFacts {
            upstream: policy.upstream.clone(),
            format: config::format_word(format),
            retry: policy.retry.clone(),
            expire_after: policy.expire_after,
            concurrency,
            paused: self.dispatcher.is_paused(name),
            health,
            account: account.filter(|_| format == Format::Wechat).map(|account| account.name.clone()),
        })
    }

    pub(super) fn status(
        &self,
        started: UnixMillis,
        obstacle: Option<&'static str>,
        queue: QueueTotals,
    ) -> admin::Status {
        let (config, since) = self.config.lock().clone();
        let account = |account: &Account| admin::AccountOverview {
            name: account.name.to_string(),
            path: account.path.clone(),
            mode: account.credentials.mode.as_str().to_owned(),
            app_id: account.credentials.app_id.to_string(),
        };
        let needs_restart = config::needs_restart(&self.started_with, &config);
        admin::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: started,
            uptime_seconds: UnixMillis::now().since(started).as_secs(),
            generation: self.generation.load(Ordering::Relaxed),
            config_sha256: config.sha256.clone(),
            config_since: Some(since),
            needs_restart: needs_restart.into_iter().map(str::to_owned).collect(),
            warnings: config.warnings.clone(),
            store: store_name(&self.started_with.queue.engine),
            listen: self.push_addresses.clone(),
            accounts: config.accounts.iter().map(account).collect(),
            targets: self.configured_targets(),
            ready: obstacle.is_none(),
            not_ready_because: obstacle.map(str::to_owned),
            clock: self.queue.clock().state().name().to_owned(),
            queue,
            replicas: self.queue.replicas().unwrap_or_default(),
        }
    }

    /// The relay's state on one line, for systemd's status.
    pub async fn summary(&self) -> String {
        let obstacle = self.ready.obstacle().or_else(|| self.queue.obstacle().map(queue::Obstacle::word));
        let state = obstacle.map_or_else(|| "ready".to_owned(), |obstacle| format!("not ready: {obstacle}"));
        let Ok(stats) = self.queue.stats().await else { return format!("{state}; the store cannot be read") };
        let QueueTotals { events, counts, .. } = QueueTotals::new(&stats, self.queue.memory());
        format!("{state}; {events} events, {} pending, {} dead", counts.pending, counts.dead)
    }
}

/// The folder of the store, or its server.
pub fn store_name(engine: &Engine) -> String {
    match engine {
        Engine::Embedded { path } => path.display().to_string(),
        #[cfg(feature = "postgres")]
        Engine::Postgres(settings) => {
            let addresses: Vec<_> = settings.server.addresses.iter().map(ToString::to_string).collect();
            format!("PostgreSQL at {}, schema {}", addresses.join(", "), settings.schema)
        }
    }
}
