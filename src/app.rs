//! The wiring: start order, stop order, change of configuration. The only file that knows every part.
//!
//! Start: store, dispatcher, line, listeners, ready. Stop: not ready, listeners drained, pushes under way finished,
//! attempts settled, store closed. A reload builds everything new first and then swaps; listeners and the store keep
//! what they started with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::clock::UnixMillis;
use crate::config::Config;
use crate::deliver::{ClientError, SystemRoots, Upstream};
use crate::dispatcher::{Dispatcher, Policy};
use crate::metrics::Metrics;
use crate::otlp::Exporter;
use crate::push::{Accounts, Pipeline};
use crate::queue::Queue;
use crate::server::{Bound, acme, certificate_watch, stack, tls};
use crate::tail::Tail;
use crate::{admin, queue, server};

/// Why the relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error("queue.path")]
    Queue(#[from] queue::Error),
    /// A target's connections.
    #[error("targets.{name}")]
    Target {
        /// The target.
        name: Arc<str>,
        /// What is wrong.
        source: ClientError,
    },
    /// The collector of traces.
    #[error("telemetry.otlp")]
    Collector(#[source] ClientError),
    /// A listener.
    #[error(transparent)]
    Bind(#[from] server::BindError),
    /// The certificate.
    #[error("server.tls")]
    Tls(#[from] tls::Error),
}

/// A running relay.
pub struct App {
    line: Arc<Pipeline>,
    dispatcher: Arc<Dispatcher>,
    queue: Queue,
    metrics: Arc<Metrics>,
    tail: Tail,
    exporter: Mutex<Option<Exporter>>,
    ready: admin::Ready,
    tls: Option<tls::Acceptor>,
    config: Mutex<Arc<Config>>,
    generation: AtomicU64,
    drain: Duration,
    stop_pushes: CancellationToken,
    stop_admin: CancellationToken,
    servers: Mutex<Vec<JoinHandle<()>>>,
    reloads: Mutex<Option<mpsc::Receiver<admin::Reload>>>,
    push_addresses: Vec<String>,
    admin_address: String,
}

impl App {
    /// Starts everything; on return pushes are taken.
    pub async fn start(config: Config) -> Result<Arc<Self>, StartError> {
        let started = UnixMillis::now();
        let metrics = Metrics::new();
        let (exporter, tail) = Exporter::begin(&config.telemetry, &metrics).map_err(StartError::Collector)?;
        let queue = Queue::open(&config.queue, {
            let commits = metrics.commit_duration.clone();
            move |took| commits.observe(took.as_secs_f64())
        })?;
        metrics.queue_max_bytes.set(i64::try_from(config.queue.max_size).unwrap_or(i64::MAX));
        let paused = queue.paused().await?;
        let dispatcher = Arc::new(Dispatcher::new(queue.clone(), metrics.clone(), tail.clone(), paused));
        let policies = policies(&config)?;
        let accounts = Accounts::new(config.accounts.clone(), config.log.openid, &metrics);
        let line = Pipeline::new(accounts, queue.clone(), metrics.clone(), tail.clone(), config.server.max_body);

        let certificates = &config.server.tls;
        let load = || tls::Acceptor::load(certificates, config.server.http2);
        let tls = (!certificates.is_empty()).then(load).transpose()?;
        let mut push_listeners = Vec::new();
        for listen in &config.server.listen {
            push_listeners.extend(server::bind(listen).await?);
        }
        let admin_listeners = server::bind(&config.admin.listen).await?;
        let push_addresses = announce("push", &push_listeners);
        let admin_address = announce("admin", &admin_listeners).pop().unwrap_or_default();

        dispatcher.apply(policies);
        let (reload, reloads) = mpsc::channel(1);
        let app = Arc::new(Self {
            line: Arc::new(line),
            dispatcher,
            queue,
            metrics,
            tail,
            exporter: Mutex::new(exporter),
            ready: admin::Ready::default(),
            tls,
            drain: config.server.drain,
            generation: AtomicU64::new(0),
            stop_pushes: CancellationToken::new(),
            stop_admin: CancellationToken::new(),
            servers: Mutex::default(),
            reloads: Mutex::new(Some(reloads)),
            config: Mutex::new(Arc::new(config)),
            push_addresses,
            admin_address,
        });
        app.serve(push_listeners, admin_listeners, reload, started);
        app.adopted();
        app.ready.set_ready();
        tracing::info!("ready");
        Ok(app)
    }

    fn serve(
        self: &Arc<Self>,
        push_listeners: Vec<Bound>,
        admin_listeners: Vec<Bound>,
        reload: mpsc::Sender<admin::Reload>,
        started: UnixMillis,
    ) {
        let config = self.config();
        let options = server::Options::new(&config.server);
        let line = self.line.clone();
        let pushes = tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let peer = request.extensions().get::<server::Peer>().and_then(|peer| peer.0);
            // Boxed here, or each layer would move all of it.
            Box::pin(line.clone().handle(request, peer))
        });
        let pushes = stack::around(pushes, stack::Limits::PUSHES);
        let push_server = server::serve(
            push_listeners,
            self.tls.clone(),
            pushes,
            options.clone(),
            self.stop_pushes.clone(),
            self.drain,
        );

        let this = Arc::downgrade(self);
        let state = admin::State {
            queue: self.queue.clone(),
            store: config.queue.path.clone(),
            encryption_keys: config.queue.encryption_keys.clone(),
            metrics: self.metrics.clone(),
            ready: self.ready.clone(),
            status: Arc::new(move || this.upgrade().map_or(json!({}), |app| app.status(started))),
            pause: {
                let dispatcher = self.dispatcher.clone();
                Arc::new(move |target, paused| {
                    let dispatcher = dispatcher.clone();
                    Box::pin(async move { dispatcher.pause(&target, paused).await })
                })
            },
            tail: self.tail.clone(),
            reload,
        };
        let admin = admin::service(state, &config.admin);
        let admin_server = server::serve(
            admin_listeners,
            None,
            tower::service_fn(move |request| admin.clone().call(request)),
            server::Options { http2: false, proxy_protocol: false, ..options },
            self.stop_admin.clone(),
            Duration::from_secs(1),
        );
        let mut servers = self.servers.lock();
        servers.push(tokio::spawn(push_server));
        servers.push(tokio::spawn(admin_server));
        if let Some(acceptor) = self.tls.clone() {
            acme::spawn_renewals(&acceptor, &self.metrics, &self.stop_pushes);
            tokio::spawn(certificate_watch::watch(acceptor, self.metrics.clone(), self.stop_pushes.clone()));
        }
    }

    /// Where pushes are taken, with the ports that the system chose.
    pub fn push_addresses(&self) -> &[String] {
        &self.push_addresses
    }

    /// Where the admin listener is.
    pub fn admin_address(&self) -> &str {
        &self.admin_address
    }

    /// The configuration in use.
    pub fn config(&self) -> Arc<Config> {
        self.config.lock().clone()
    }

    /// The requests to reload that come in by the admin listener; there is one receiver.
    pub fn take_reloads(&self) -> Option<mpsc::Receiver<admin::Reload>> {
        self.reloads.lock().take()
    }

    /// Puts a new configuration to use, whole or not at all.
    pub fn reload(&self, config: Config) -> Result<(), StartError> {
        let policies = policies(&config)?;
        if let Some(acceptor) = &self.tls {
            acceptor.reload()?;
            certificate_watch::publish_expiries(acceptor, &self.metrics);
        }
        for key in needing_restart(&self.config(), &config) {
            tracing::warn!(key, "this change needs a restart");
        }
        self.dispatcher.apply(policies);
        self.line.apply(Accounts::new(config.accounts.clone(), config.log.openid, &self.metrics));
        *self.config.lock() = Arc::new(config);
        self.adopted();
        Ok(())
    }

    /// Counts the configuration that is in use now.
    fn adopted(&self) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let config = self.config();
        self.metrics.config_info(&config.sha256, generation);
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!(generation, sha256 = %config.sha256, "configuration in use");
    }

    fn status(&self, started: UnixMillis) -> serde_json::Value {
        let config = self.config();
        let account = |account: &crate::push::Account| {
            let credentials = &account.credentials;
            let (mode, app_id) = (credentials.mode.as_str(), &*credentials.app_id);
            json!({ "name": &*account.name, "path": account.path, "mode": mode, "app_id": app_id })
        };
        let accounts: Vec<_> = config.accounts.iter().map(account).collect();
        let target = |name: &str| json!({ "name": name, "paused": self.dispatcher.is_paused(name) });
        let targets: Vec<_> = config.targets.iter().map(|settings| target(&settings.target.name)).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "started_at": started.to_string(),
            "uptime_seconds": UnixMillis::now().since(started).as_secs(),
            "generation": self.generation.load(Ordering::Relaxed),
            "config_sha256": config.sha256,
            "listen": self.push_addresses,
            "accounts": accounts,
            "targets": targets,
        })
    }

    /// Returns when every part that pushes and deliveries need has answered; waits for ever for one that hangs.
    ///
    /// # Errors
    /// The name of a part that has ended though nobody told it to.
    pub async fn pulse(&self) -> Result<(), &'static str> {
        if self.servers.lock().iter().any(JoinHandle::is_finished) {
            return Err("listeners");
        }
        if !self.dispatcher.is_whole() {
            return Err("dispatcher");
        }
        self.queue.ping().await.map_err(|_| "store")
    }

    /// How it stands, in a line for people.
    pub async fn summary(&self) -> String {
        let obstacle = self.ready.obstacle().or_else(|| self.queue.obstacle().map(queue::Obstacle::word));
        let state = obstacle.map_or_else(|| "ready".to_owned(), |obstacle| format!("not ready: {obstacle}"));
        let Ok(stats) = self.queue.stats().await else { return format!("{state}; the store cannot be read") };
        let sum =
            |count: fn(&queue::view::Counts) -> u64| stats.targets.iter().map(|one| count(&one.counts)).sum::<u64>();
        let (pending, dead) = (sum(|counts| counts.pending), sum(|counts| counts.dead));
        format!("{state}; {} events, {pending} pending, {dead} dead", stats.events)
    }

    /// Stops in order, so that nothing that was answered is lost and nothing under way is cut off before `server.drain`.
    pub async fn stop(&self) {
        self.ready.set_unready("draining");
        tracing::info!("draining");
        let deadline = Instant::now() + self.drain;
        self.stop_pushes.cancel();
        self.line.close_windows();
        let servers = std::mem::take(&mut *self.servers.lock());
        let mut servers = servers.into_iter();
        if let Some(pushes) = servers.next() {
            // A server task ends by itself within `drain`; a panic in it is already logged.
            pushes.await.ok();
        }
        let settled = async {
            self.line.drain().await;
            self.dispatcher.drain().await;
        };
        if tokio::time::timeout_at(deadline, settled).await.is_err() {
            tracing::warn!("attempts under way are cut off; their deliveries stay pending");
        }
        self.tail.close();
        let exporter = self.exporter.lock().take();
        if let Some(exporter) = exporter {
            exporter.end(deadline).await;
        }
        self.stop_admin.cancel();
        for server in servers {
            server.await.ok();
        }
        self.queue.clone().close().await;
        tracing::info!("stopped");
    }
}

/// The keys that differ and are read at the start alone.
fn needing_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let same_token = match (&old.admin.token, &new.admin.token) {
        (Some(old), Some(new)) => old.matches(new.expose()),
        (old, new) => old.is_none() && new.is_none(),
    };
    let same = [
        ("server.listen", old.server.listen == new.server.listen),
        ("server.tls", old.server.tls == new.server.tls),
        ("server.trusted_proxies", old.server.trusted_proxies == new.server.trusted_proxies),
        ("server.proxy_protocol", old.server.proxy_protocol == new.server.proxy_protocol),
        ("server.http2", old.server.http2 == new.server.http2),
        ("server.drain", old.server.drain == new.server.drain),
        ("server.max_body", old.server.max_body == new.server.max_body),
        ("admin.listen", old.admin.listen == new.admin.listen),
        ("admin.token", same_token),
        ("queue.path", old.queue.path == new.queue.path),
        ("queue.retention", old.queue.retention == new.queue.retention),
        ("queue.max_size", old.queue.max_size == new.queue.max_size),
        ("queue.encryption_keys", old.queue.encryption_keys == new.queue.encryption_keys),
        ("accounts.*.dedup_window", old.queue.dedup_window == new.queue.dedup_window),
        ("log.format", old.log.format == new.log.format),
        ("telemetry.otlp", old.telemetry.url == new.telemetry.url),
        ("telemetry.headers", old.telemetry.headers == new.telemetry.headers),
        ("telemetry.service_name", old.telemetry.service_name == new.telemetry.service_name),
    ];
    same.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
}

fn policies(config: &Config) -> Result<Vec<Policy>, StartError> {
    let trust = SystemRoots::default();
    let build = |settings: &crate::dispatcher::TargetSettings| {
        let accounts = config.accounts.iter().map(|account| (&account.name, &account.credentials));
        let upstream = Upstream::new(settings.target.clone(), accounts, &trust)
            .map_err(|source| StartError::Target { name: settings.target.name.clone(), source })?;
        Ok(Policy::new(settings, upstream, config.log.openid))
    };
    config.targets.iter().map(build).collect()
}

/// Says where a listener listens, with the port that the system chose.
fn announce(listener: &str, bound: &[Bound]) -> Vec<String> {
    let addresses: Vec<_> = bound.iter().map(Bound::address).collect();
    for address in &addresses {
        tracing::info!(listener, address, "listening");
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing of ours ends a lane's task but a bug; here the runtime that it runs on goes, and takes it along.
    #[tokio::test]
    async fn the_pulse_misses_a_lane_that_has_ended_though_nobody_told_it_to() {
        let folder = tempfile::tempdir().unwrap();
        let load = |targets: &str| {
            let path = folder.path().join("config.toml");
            let text = "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[queue]\npath = \"store\"\n\
                        [accounts.shop]\npath = \"/wx\"\napp_id = \"wx0\"\ntoken = \"abc\"\nmode = \"plaintext\"\n";
            std::fs::write(&path, format!("{text}{targets}")).unwrap();
            crate::config::load(Some(&path), [], &[]).unwrap()
        };
        let app = App::start(load("")).await.unwrap();
        let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        {
            let _spawned_there = other.enter();
            app.reload(load("[targets.crm]\nurl = \"http://127.0.0.1:9/\"\n")).unwrap();
        }
        assert_eq!(app.pulse().await, Ok(()));
        other.shutdown_background();
        let missed = async {
            while app.pulse().await != Err("dispatcher") {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(20), missed).await.is_ok(), "the lane is not missed");
        app.stop().await;
    }
}
