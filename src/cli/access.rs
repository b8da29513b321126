//! How commands reach events and targets: in the store, or through the running relay, whose address is enough.
//!
//! Without `--admin` a command reads the store, which works without a running relay too. It asks the relay instead if
//! the configuration has errors, or if only the service's user may read the store.

use std::io;
use std::path::PathBuf;

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::api::{AdminAddress, Api};
use super::{BadConfig, ConfigArgs, output};
use crate::admin::{EventPage, TargetList, TargetOverview};
use crate::bounded_file;
use crate::clock::UnixMillis;
use crate::config::{self, Config};
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

/// What a command works on.
pub(super) enum Access {
    /// The store of this configuration, and the relay that may have it open.
    Store(Box<Config>),
    /// The running relay alone.
    Relay(Api),
}

impl RelayArgs {
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

    /// The whole configuration; `None` where the relay's address was given, or there are errors.
    pub(super) fn config(&self) -> anyhow::Result<Option<Config>> {
        Ok(if self.address()?.is_some() { None } else { self.config.load().ok() })
    }

    /// The store, or the running relay where that is all there is.
    pub(super) async fn access(&self) -> anyhow::Result<Access> {
        if self.address()?.is_some() {
            return Ok(Access::Relay(self.api()?));
        }
        let errors = match self.config.load() {
            Ok(mut config) => {
                config.admin.token = self.token()?.or(config.admin.token);
                let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
                if std::fs::read_dir(&config.queue.path).is_err_and(|error| is_denied(&error)) {
                    return Ok(Access::Relay(Api::of(&config)?));
                }
                return Ok(Access::Store(Box::new(config)));
            }
            Err(errors) => errors,
        };
        match self.api() {
            Ok(api) if api.is_reachable().await => {
                let hint = "the configuration has errors, see `wxrelay check`; asking the running relay";
                output::stderr().write_line(&format!("warning: {hint}"))?;
                Ok(Access::Relay(api))
            }
            Ok(_) | Err(_) => Err(errors.into()),
        }
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

impl Access {
    /// The newest events of a filter.
    pub(super) async fn events(&self, filter: &EventFilter) -> anyhow::Result<Vec<EventSummary>> {
        let api = match self {
            Self::Store(config) => return Ok(store(config)?.events(filter)?),
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
            Self::Store(config) => return Ok(store(config)?.event(id)?),
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
        if let Self::Store(config) = self {
            return Ok(store(config)?.dead(target, limit, before)?);
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
    pub(super) fn count(&self, sweep: &Sweep, after: Option<EventId>) -> anyhow::Result<Option<u64>> {
        match self {
            Self::Store(config) => Ok(Some(store(config)?.count(sweep, after)?)),
            Self::Relay(_) => Ok(None),
        }
    }

    /// After the newest event.
    pub(super) fn end(&self) -> anyhow::Result<UnixMillis> {
        match self {
            Self::Store(config) => Ok(store(config)?.end()?),
            Self::Relay(_) => Ok(UnixMillis::now()),
        }
    }

    /// Every target that is configured or has deliveries.
    pub(super) async fn targets(&self) -> anyhow::Result<Vec<TargetOverview>> {
        match self {
            Self::Store(config) => {
                let store = Inspect::open(&config.queue.path)?;
                let configured = config.targets.iter().map(|settings| &*settings.target.name);
                Ok(TargetOverview::merge(configured, &store.stats()?.targets, &store.paused()?))
            }
            Self::Relay(api) => {
                let TargetList { targets } = api.get("/api/targets").await?;
                Ok(targets)
            }
        }
    }
}

fn store(config: &Config) -> anyhow::Result<Inspect> {
    Ok(Inspect::open(&config.queue.path)?.with_keys(&config.queue.encryption_keys))
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
