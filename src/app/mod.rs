//! The wiring: start order, stop order, reload. Only this folder uses every part.
//!
//! Start: store, dispatcher, push pipeline, listeners, ready. Stop: not ready, listeners drained, active pushes
//! finished, attempts settled, store closed. A reload builds everything new first and then swaps; listeners and the
//! store keep the settings that they started with.

mod preparation;
mod replicas;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::clock::UnixMillis;
use crate::config::{self, Config};
use crate::dispatcher::Dispatcher;
use crate::login::Logins;
use crate::metrics::{Metrics, NO_LABEL};
use crate::otlp::Exporter;
use crate::push::{Accounts, Pipeline};
use crate::queue::{Queue, ReplicaFacts};
use crate::server::descriptors::DescriptorBudget;
use crate::server::{Bound, ConnectionLimit, acme, certificate_watch, stack, tls};
use crate::tail::Tail;
use crate::{admin, queue, server};

use self::preparation::{Prepared, policies, prepare};
pub use self::preparation::{StartError, check};
pub use self::report::store_name;

/// How long a stop may take beyond `server.drain`, to close what does not end by itself.
pub const STOP_GRACE: Duration = Duration::from_millis(600);

/// The store was not closed by the end of a stop.
#[derive(Debug, thiserror::Error)]
#[error("the store was not closed in time")]
pub struct StoreNotClosed {
    is_local: bool,
}

impl StoreNotClosed {
    /// How to fix it.
    pub fn remedy(&self) -> &'static str {
        if self.is_local {
            "check the disk, which does not complete a flush; the next start continues from the write-ahead log"
        } else {
            "check PostgreSQL and its standby; other replicas, or the next start, continue with what was under way"
        }
    }
}

/// A running relay.
pub struct App {
    pipeline: Arc<Pipeline>,
    logins: Arc<Logins>,
    dispatcher: Arc<Dispatcher>,
    queue: Queue,
    metrics: Arc<Metrics>,
    tail: Tail,
    exporter: Mutex<Option<Exporter>>,
    ready: admin::Ready,
    tls: Option<tls::Acceptor>,
    /// The configuration in use, and since when.
    config: Mutex<(Arc<Config>, UnixMillis)>,
    /// That of the start, whose listeners and store stay.
    started_with: Arc<Config>,
    generation: AtomicU64,
    drain: Duration,
    stop_pushes: CancellationToken,
    stop_admin: CancellationToken,
    servers: Mutex<Vec<JoinHandle<()>>>,
    /// Reloads renewed certificates; `None` without TLS.
    certificates: Mutex<Option<JoinHandle<()>>>,
    reloads: Mutex<Option<mpsc::Receiver<admin::Reload>>>,
    push_addresses: Vec<String>,
    admin_address: String,
    push_connections: ConnectionLimit,
}

impl App {
    /// Starts all parts; on return pushes are accepted.
    pub async fn start(config: Config) -> Result<Arc<Self>, StartError> {
        let started = UnixMillis::now();
        let Prepared { policies, tls } = prepare(&config)?;
        let metrics = Metrics::new();
        let (exporter, tail) = Exporter::start(&config.telemetry, &metrics).map_err(StartError::Collector)?;
        match config.queue.folder().or(config.queue.spool()).map_or(Ok(()), queue::check_owner) {
            Err(error) if config.strict => return Err(error.into()),
            Err(error) => tracing::warn!(%error, remedy = error.remedy(), "store owned by another user"),
            Ok(()) => {}
        }
        let queue = Queue::open(&config.queue, {
            let commits = metrics.commit_duration.clone();
            move |took| commits.observe(took.as_secs_f64())
        })
        .await?;
        queue.clock().set_bound(clock_bound(&config));
        publish_limits(&config, &metrics);
        let (push_listeners, admin_listeners) = bind(&config, &queue).await?;
        let paused = queue.paused().await?;
        let dispatcher = Arc::new(Dispatcher::new(queue.clone(), metrics.clone(), tail.clone(), paused));
        let accounts = Accounts::new(config.accounts.clone(), config.log.openid, &metrics);
        let pipeline = Pipeline::new(accounts, queue.clone(), metrics.clone(), tail.clone(), config.server.max_body);

        let logins = Logins::default();
        logins.apply(&config.logins, &metrics);

        let push_addresses = log_addresses("push", &push_listeners);
        let admin_address = log_addresses("admin", &admin_listeners).pop().unwrap_or_default();

        if let Some(tls) = &tls {
            Box::pin(acme::restore(tls, &queue)).await;
        }
        let pipeline = Arc::new(pipeline);
        let resumed = pipeline.resume(UnixMillis::now()).await;
        let mut shares = queue.shares();
        dispatcher.divide(*shares.borrow_and_update());
        dispatcher.apply(policies);
        queue.begin_draining();
        resumed.into_iter().for_each(|lease| queue.hand_over(lease));
        let (reload, reloads) = mpsc::channel(1);
        let config = Arc::new(config);
        let app = Arc::new(Self {
            pipeline,
            logins: Arc::new(logins),
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
            certificates: Mutex::default(),
            reloads: Mutex::new(Some(reloads)),
            config: Mutex::new((config.clone(), started)),
            started_with: config,
            push_addresses,
            admin_address,
            push_connections: ConnectionLimit::new(0),
        });
        app.serve(push_listeners, admin_listeners, reload, started);
        app.record_config();
        replicas::follow(app.pipeline.clone(), app.dispatcher.clone(), shares, app.stop_admin.clone());
        let (pipeline, stop) = (app.pipeline.clone(), app.stop_admin.clone());
        tokio::spawn(async move { stop.run_until_cancelled(pipeline.expire_held()).await });
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
        let admin_connections = self.divide_descriptors(&config);
        let (logins, pipeline) = (self.logins.clone(), self.pipeline.clone());
        let pushes = tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let peer = request.extensions().get::<server::Peer>().and_then(|peer| peer.0);
            let pipeline = pipeline.clone();
            let page = logins.answer(&request, peer);
            // Boxed here: else each layer would move the whole future of a push.
            Box::pin(async move {
                match page {
                    Some(page) => Ok(page),
                    None => pipeline.handle(request, peer).await,
                }
            })
        });
        let pushes = stack::around(pushes, stack::Limits::PUSHES);
        let push_server = server::serve(
            push_listeners,
            self.tls.clone(),
            pushes,
            server::Options { max_connections: self.push_connections.clone(), ..options.clone() },
            self.stop_pushes.clone(),
            self.drain,
        );

        let (for_status, for_targets, for_target) = (Arc::downgrade(self), Arc::downgrade(self), Arc::downgrade(self));
        let state = admin::State {
            queue: self.queue.clone(),
            store: config.queue.clone(),
            metrics: self.metrics.clone(),
            ready: self.ready.clone(),
            targets: Arc::new(move || for_targets.upgrade().map(|app| app.configured_targets())),
            status: Arc::new(move |obstacle, queue| Some(for_status.upgrade()?.status(started, obstacle, queue))),
            pause: {
                let dispatcher = self.dispatcher.clone();
                Arc::new(move |target, paused| {
                    let dispatcher = dispatcher.clone();
                    Box::pin(async move { dispatcher.pause(&target, paused).await })
                })
            },
            tail: self.tail.clone(),
            reload,
            target: Arc::new(move |name| for_target.upgrade()?.target_facts(name)),
            stop: self.stop_admin.clone(),
        };
        let admin = admin::service(state, &config.admin);
        let admin_server = server::serve(
            admin_listeners,
            None,
            tower::service_fn(move |request| admin.clone().call(request)),
            server::Options { http2: false, proxy_protocol: false, max_connections: admin_connections, ..options },
            self.stop_admin.clone(),
            Duration::from_secs(1),
        );
        let clock = self.queue.clock().clone();
        tokio::spawn(admin::watch_clock(clock, self.metrics.clone(), self.stop_admin.clone()));
        let mut servers = self.servers.lock();
        servers.push(tokio::spawn(push_server));
        servers.push(tokio::spawn(admin_server));
        if let Some(acceptor) = self.tls.clone() {
            acme::spawn_renewals(&acceptor, &self.queue, &self.metrics, &self.stop_pushes);
            let watch = certificate_watch::watch(acceptor, self.metrics.clone(), self.stop_pushes.clone());
            *self.certificates.lock() = Some(tokio::spawn(watch));
        }
    }

    /// The addresses that accept pushes, with the ports that the system chose.
    pub fn push_addresses(&self) -> &[String] {
        &self.push_addresses
    }

    /// The address of the admin listener.
    pub fn admin_address(&self) -> &str {
        &self.admin_address
    }

    /// The configuration in use.
    pub fn config(&self) -> Arc<Config> {
        self.config.lock().0.clone()
    }

    /// The receiver of the admin listener's reload requests; `None` if it was taken before.
    pub fn take_reloads(&self) -> Option<mpsc::Receiver<admin::Reload>> {
        self.reloads.lock().take()
    }

    /// Applies a new configuration, and logs the changed keys that need a restart. On an error nothing changes.
    pub fn reload(&self, config: Config) -> Result<admin::ReloadReport, StartError> {
        let policies = policies(&config)?;
        if let Some(acceptor) = &self.tls {
            acceptor.reload()?;
            certificate_watch::publish_expiries(acceptor, &self.metrics);
        }
        let needs_restart = config::needs_restart(&self.started_with, &config);
        for key in &needs_restart {
            tracing::warn!(key, "configuration change needs a restart");
        }
        let changes = self.config().keys.changes(&config.keys);
        self.queue.set_replay_window(config.queue.replay_window);
        self.divide_descriptors(&config);
        self.queue.clock().set_bound(clock_bound(&config));
        self.dispatcher.apply(policies);
        self.logins.apply(&config.logins, &self.metrics);
        self.pipeline.apply(Accounts::new(config.accounts.clone(), config.log.openid, &self.metrics));
        let config = Arc::new(config);
        *self.config.lock() = (config.clone(), UnixMillis::now());
        let generation = self.record_config();
        Ok(admin::ReloadReport {
            reloaded: true,
            generation,
            config_sha256: config.sha256.clone(),
            changes,
            needs_restart: needs_restart.into_iter().map(str::to_owned).collect(),
            warnings: config.warnings.clone(),
        })
    }

    /// Divides the file descriptors among pushes, targets and the admin listener, whose connections it returns.
    fn divide_descriptors(&self, config: &Config) -> ConnectionLimit {
        let budget = DescriptorBudget::of_process(config.targets.iter().map(|settings| settings.concurrency));
        budget.log();
        self.push_connections.set(budget.pushes);
        self.pipeline.set_connections(budget.pushes);
        ConnectionLimit::new(budget.admin)
    }

    /// Logs the configuration in use with its warnings, sets its metric, and returns its number.
    fn record_config(&self) -> u64 {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let config = self.config();
        self.metrics.config_info(&config.sha256, generation);
        self.queue.tell(ReplicaFacts {
            config_sha256: config.shared_sha256.clone(),
            admin: Some(self.admin_address.clone()).filter(|address| !address.is_empty()),
        });
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!(generation, sha256 = %config.sha256, "configuration in use");
        generation
    }

    /// Returns when every part that pushes and deliveries need has answered; never returns while the store hangs.
    ///
    /// # Errors
    /// The name of a part that has ended by itself or makes no progress.
    pub async fn pulse(&self) -> Result<(), &'static str> {
        if let Some(part) = self.ended_part().or_else(|| self.ready.stuck()) {
            return Err(part);
        }
        self.queue.ping().await.map_err(|_| "store")
    }

    /// A part that has ended by itself, if one has: only a bug does that. Waits for nothing.
    pub fn ended_part(&self) -> Option<&'static str> {
        if self.servers.lock().iter().any(JoinHandle::is_finished) {
            return Some("listeners");
        }
        if self.certificates.lock().as_ref().is_some_and(JoinHandle::is_finished) {
            return Some("certificates");
        }
        if !self.dispatcher.is_whole() {
            return Some("dispatcher");
        }
        (self.queue.obstacle() == Some(queue::Obstacle::Closed)).then_some("store")
    }

    /// The queue.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The deliveries.
    pub fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    /// Whether pushes are accepted.
    pub fn ready(&self) -> &admin::Ready {
        &self.ready
    }

    /// The time that a stop may take, [`STOP_GRACE`] not counted.
    pub fn drain(&self) -> Duration {
        self.drain
    }

    /// Stops the parts in order: no answered push is lost, and nothing is cancelled before `server.drain` is over.
    ///
    /// Returns at most [`STOP_GRACE`] after that, whatever hangs.
    ///
    /// # Errors
    /// If the store could not be closed in time, as on a disk that does not complete a flush. What was answered is on
    /// disk all the same.
    pub async fn stop(&self) -> Result<(), StoreNotClosed> {
        self.ready.set_unready("draining");
        tracing::info!("draining");
        let deadline = Instant::now() + self.drain;
        self.stop_pushes.cancel();
        self.pipeline.close_windows();
        let servers = std::mem::take(&mut *self.servers.lock());
        let mut servers = servers.into_iter();
        if let Some(pushes) = servers.next() {
            // It ends by itself within `drain`; a panic in it is already logged.
            timeout_at(deadline + STOP_GRACE / 3, pushes).await.ok();
        }
        let settled = async {
            self.pipeline.drain().await;
            self.dispatcher.drain().await;
        };
        if timeout_at(deadline, settled).await.is_err() {
            tracing::warn!("drain timed out, running attempts cancelled; their deliveries stay pending");
        }
        self.tail.close();
        let exporter = self.exporter.lock().take();
        if let Some(exporter) = exporter {
            exporter.stop(deadline).await;
        }
        self.stop_admin.cancel();
        for server in servers {
            timeout_at(deadline + STOP_GRACE / 2, server).await.ok();
        }
        timeout_at(deadline + STOP_GRACE, self.queue.clone().close())
            .await
            .map_err(|_| StoreNotClosed { is_local: self.started_with.queue.folder().is_some() })?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Sets the metrics of what limits the queue.
fn publish_limits(config: &Config, metrics: &Metrics) {
    if let Some(limit) = config.queue.size_limit() {
        metrics.queue_max_bytes.with_label_values(NO_LABEL).set(i64::try_from(limit).unwrap_or(i64::MAX));
    }
    metrics.queue_max_memory_bytes.set(i64::try_from(config.queue.max_memory).unwrap_or(i64::MAX));
}

/// Binds the listeners. If that fails, closes the store: what the start has left in a shared one would count as a replica
/// that has crashed.
async fn bind(config: &Config, queue: &Queue) -> Result<(Vec<Bound>, Vec<Bound>), StartError> {
    let bound = server::bind_all(&config.server.listen, &config.admin.listen).await;
    if bound.is_err() {
        timeout(config.server.drain, queue.clone().close()).await.ok();
    }
    Ok(bound?)
}

/// How far the clock may be from WeChat's timestamps: as far as the most tolerant account accepts them.
fn clock_bound(config: &Config) -> Option<Duration> {
    config.accounts.iter().filter_map(|account| account.max_skew).max()
}

/// Logs the addresses of a listener, with the port that the system chose.
fn log_addresses(listener: &str, bound: &[Bound]) -> Vec<String> {
    let addresses: Vec<_> = bound.iter().map(Bound::address).collect();
    for address in &addresses {
        tracing::info!(listener, address, "listening");
    }
    addresses
}
