//! How commands reach events and targets: in the store, or through the running relay, whose address is enough.
//!
//! Without `--admin` a command reads the store, which works without a running relay too, and needs `[queue]` only. It
//! asks the relay instead if that has errors, or if only the service's user may read the store.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::api::{AdminAddress, Api};
use super::{BadConfig, ConfigArgs, ONLY_QUEUE, output};
use crate::admin::{EventPage, TargetList, TargetOverview};
use crate::bounded_file;
use crate::clock::UnixMillis;
use crate::config::{self, StoreAccess};
use crate::event::EventId;
use crate::queue::view::{DeadLetter, DeliveryDetail, EventDetail, EventSummary};
use crate::queue::{DeliveryState, EventFilter, Inspect, Sweep};
use crate::secret::Secret;

/// The most events of one request.
const PAGE: usize = 500;

/// The configuration file, or the running relay.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RelayArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Ask the relay at this address, such as http://127.0.0.1:9180 or unix:/run/wxrelay/admin.sock; the configuration
    /// is not read [default: $WXRELAY_ADMIN, else admin.listen]
    #[arg(long, global = true, value_name = "URL")]
    admin: Option<AdminAddress>,
    /// Read the relay's admin token from this file [default: $WXRELAY_ADMIN_TOKEN, else admin.token]
    #[arg(long, global = true, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
}

/// Which relay, and whether what it says is printed as JSON.
#[derive(clap::Args)]
pub struct ReportArgs {
    #[command(flatten)]
    pub(super) relay: RelayArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What the configuration names.
pub(super) struct ConfiguredNames {
    pub(super) targets: Vec<String>,
    pub(super) accounts: Vec<String>,
}

/// What a command works on.
pub(super) enum Access {
    /// The store of this configuration, and the relay that may have it open.
    Store(Box<StoreAccess>),
    /// The running relay alone.
    Relay(Api),
}

impl RelayArgs {
    /// What the environment names.
    pub(super) fn of_environment() -> Self {
        Self { config: ConfigArgs { config: None }, admin: None, admin_token_file: None }
    }

    /// The running relay. No other part of the configuration than `[admin]` matters.
    pub(super) fn api(&self) -> anyhow::Result<Api> {
        let token = self.token()?;
        if let Some(address) = self.address()? {
            return Ok(Api::at(address).with_token(token));
        }
        let access = config::admin_access(self.config.file().as_deref(), config::environment());
        let access = access.map_err(|errors| {
            // Nothing is left to report to.
            output::stderr().write_line("hint: with the relay's address, --admin URL, no configuration is needed").ok();
            BadConfig(errors)
        })?;
        Ok(Api::configured(access)?.with_token(token))
    }

    /// How long finished events are kept; `None` where the relay's address was given, or `[queue]` is wrong.
    pub(super) fn retention(&self) -> anyhow::Result<Option<Duration>> {
        let store = if self.address()?.is_some() { None } else { self.config.lenient_store() };
        Ok(store.map(|store| store.queue.retention))
    }

    /// The store, if it is in PostgreSQL: any process may read it. `None` where the relay's address was given.
    pub(super) fn shared_store(&self) -> anyhow::Result<Option<StoreAccess>> {
        let store = if self.address()?.is_some() { None } else { self.config.lenient_store() };
        Ok(store.filter(|store| store.is_named && store.queue.folder().is_none()))
    }

    /// The names of the configured targets and accounts, if the configuration is valid and no relay's address is given.
    pub(super) fn configured_names(&self) -> Option<ConfiguredNames> {
        if self.address().ok()?.is_some() {
            return None;
        }
        let config = self.config.load().ok()?;
        let targets = config.targets.iter().map(|one| one.target.name.to_string()).collect();
        Some(ConfiguredNames { targets, accounts: config.accounts.iter().map(|one| one.name.to_string()).collect() })
    }

    /// The configured accounts, by name and AppID, if the configuration is valid.
    pub(super) fn accounts(&self) -> Option<Vec<(String, String)>> {
        let config = self.config.load().ok()?;
        let of = |account: &crate::push::Account| (account.name.to_string(), account.credentials.app_id.to_string());
        Some(config.accounts.iter().map(of).collect())
    }

    /// The store, or the running relay where that is all there is.
    pub(super) async fn access(&self) -> anyhow::Result<Access> {
        if self.address()?.is_some() {
            return Ok(Access::Relay(self.api()?));
        }
        let (store, errors) = match self.config.load() {
            Ok(config) => (Some(StoreAccess::from(config)), None),
            Err(errors) => (self.config.lenient_store(), Some(errors)),
        };
        if let Some(store) = store.as_ref().filter(|store| store.is_named && !is_denied(store)) {
            return self.of_store(store.clone(), errors.is_some());
        }
        let Some(errors) = errors else { return Ok(Access::Relay(self.api()?)) };
        match (self.api(), store) {
            (Ok(api), _) if api.is_reachable().await => {
                let hint = "the configuration has errors, see `wxrelay check`; asking the running relay";
                output::stderr().write_line(&format!("warning: {hint}"))?;
                Ok(Access::Relay(api))
            }
            (_, Some(store)) if !is_denied(&store) => self.of_store(store, true),
            (Ok(_) | Err(_), _) => Err(errors.into()),
        }
    }

    fn of_store(&self, mut store: StoreAccess, has_errors: bool) -> anyhow::Result<Access> {
        if has_errors {
            output::stderr().write_line(ONLY_QUEUE)?;
        }
        if let (Some(token), Ok(admin)) = (self.token()?, &mut store.admin) {
            admin.token = Ok(Some(token));
        }
        Ok(Access::Store(Box::new(store)))
    }

    fn address(&self) -> anyhow::Result<Option<AdminAddress>> {
        if let Some(address) = &self.admin {
            return Ok(Some(address.clone()));
        }
        let named = std::env::var("WXRELAY_ADMIN").ok().filter(|text| !text.trim().is_empty());
        named.map(|text| text.parse().map_err(|expected| anyhow::anyhow!("$WXRELAY_ADMIN: {expected}"))).transpose()
    }

    fn token(&self) -> anyhow::Result<Option<Secret>> {
        use anyhow::Context as _;
        if let Some(path) = &self.admin_token_file {
            let read = bounded_file::read_text(path);
            let (text, _) = read.with_context(|| format!("--admin-token-file: cannot read {}", path.display()))?;
            return Ok(Some(Secret::new(text.trim())));
        }
        let named = std::env::var("WXRELAY_ADMIN_TOKEN").ok();
        Ok(named.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).map(Secret::new))
    }
}

/// Whether only another user, that of the service, may read the store.
fn is_denied(store: &StoreAccess) -> bool {
    let read = store.queue.folder().map_or(Ok(()), |folder| std::fs::read_dir(folder).map(drop));
    read.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

impl Access {
    /// The newest events of a filter.
    pub(super) async fn events(&self, filter: &EventFilter) -> anyhow::Result<Vec<EventSummary>> {
        let api = match self {
            Self::Store(access) => return Ok(store(access).await?.events(filter).await?),
            Self::Relay(api) => api,
        };
        let (mut found, mut before) = (Vec::new(), filter.before);
        while found.len() < filter.limit {
            let page = EventFilter { before, limit: PAGE.min(filter.limit - found.len()), ..filter.clone() };
            let EventPage { events, cursor } = api.get(&format!("/api/events?{}", query(&page))).await?;
            found.extend(events);
            let Some(next) = cursor else { break };
            before = Some(next.parse()?);
        }
        Ok(found)
    }

    /// One event with every attempt.
    pub(super) async fn event(&self, id: EventId) -> anyhow::Result<Option<EventDetail>> {
        let api = match self {
            Self::Store(access) => return Ok(store(access).await?.event(id).await?),
            Self::Relay(api) => api,
        };
        let path = format!("/api/events/{id}");
        let (status, answer) = api.call(Method::GET, &path, None).await?;
        match status {
            http::StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(serde_json::from_value(answer)?)),
            status => Err(api.refusal(status, answer["error"].as_str().unwrap_or("no reason given"))),
        }
    }

    /// The newest dead letters, of one target or all, of events older than `before`.
    pub(super) async fn dead(
        &self,
        target: Option<&str>,
        limit: usize,
        before: Option<EventId>,
    ) -> anyhow::Result<Vec<DeadLetter>> {
        if let Self::Store(access) = self {
            return Ok(store(access).await?.dead(target, limit, before).await?);
        }
        let filter = EventFilter {
            target: target.map(str::to_owned),
            state: Some(DeliveryState::Dead),
            before,
            limit,
            ..EventFilter::default()
        };
        let mut letters = Vec::new();
        for event in self.events(&filter).await? {
            // It may be deleted meanwhile.
            let Some(event) = self.event(event.id).await? else { continue };
            letters.extend(dead_letters(event, target));
        }
        letters.truncate(limit);
        Ok(letters)
    }

    /// How many deliveries or events a sweep would change; `None` where only the relay knows.
    pub(super) async fn count(&self, sweep: &Sweep, after: Option<EventId>) -> anyhow::Result<Option<u64>> {
        match self {
            Self::Store(access) => Ok(Some(store(access).await?.count(sweep, after).await?)),
            Self::Relay(_) => Ok(None),
        }
    }

    /// After the newest event.
    pub(super) async fn end(&self) -> anyhow::Result<UnixMillis> {
        match self {
            Self::Store(access) => Ok(store(access).await?.end().await?),
            Self::Relay(_) => Ok(UnixMillis::now()),
        }
    }

    /// Every target that is configured or has deliveries.
    pub(super) async fn targets(&self) -> anyhow::Result<Vec<TargetOverview>> {
        match self {
            Self::Store(access) => {
                let store = store(access).await?;
                let configured = access.targets.iter().map(|(name, _)| &**name);
                Ok(TargetOverview::merge(configured, &store.stats().await?.targets, &store.paused().await?))
            }
            Self::Relay(api) => {
                let TargetList { targets } = api.get("/api/targets").await?;
                Ok(targets)
            }
        }
    }
}

async fn store(access: &StoreAccess) -> anyhow::Result<Inspect> {
    Ok(Inspect::open(&access.queue).await?)
}

/// A filter as the query of a request.
fn query(filter: &EventFilter) -> String {
    let EventFilter { account, event, from, target, state, since, until, before, limit } = filter;
    let given = json!({
        "account": account, "event": event, "from": from, "target": target, "state": state.map(|state| state.name()),
        "since": since.map(|time| time.to_string()), "until": until.map(|time| time.to_string()),
        "cursor": before.map(|id| id.to_string()), "limit": limit.to_string(),
    });
    let given = given.as_object().into_iter().flatten().filter_map(|(key, value)| Some((key, value.as_str()?)));
    let encoded = given.map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    encoded.collect::<Vec<_>>().join("&")
}

/// The dead deliveries of an event.
fn dead_letters(event: EventDetail, target: Option<&str>) -> Vec<DeadLetter> {
    let is_meant = |delivery: &DeliveryDetail| {
        delivery.state == DeliveryState::Dead && target.is_none_or(|target| delivery.target == target)
    };
    let EventDetail { id, received_at, account, msg_type, event, deliveries, sealed, .. } = event;
    let letter = |delivery: DeliveryDetail| {
        let attempts = u32::try_from(delivery.attempts.len()).unwrap_or(u32::MAX);
        let last = delivery.attempts.into_iter().next_back();
        let (status, error, answer) = last.map_or((None, None, None), |last| (last.status, last.error, last.answer));
        DeadLetter {
            id,
            target: delivery.target,
            received_at,
            ended_at: delivery.ended_at,
            account: account.clone(),
            msg_type: msg_type.clone(),
            event: event.clone(),
            attempts,
            status,
            error,
            answer,
            sealed: sealed.clone(),
        }
    };
    deliveries.into_iter().filter(is_meant).map(letter).collect()
}
