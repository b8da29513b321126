//! `wxrelay audit --deep`: decrypts, parses and formats every stored event again.
//!
//! The queue reads events back and compares their rows, `wechat` decrypts their pushes again with the configured keys,
//! and `deliver` builds the request of every delivery that may still be attempted. Nothing is sent and nothing is
//! changed. Findings quote no event.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Serialize, Serializer};

use crate::clock::UnixMillis;
use crate::config::Config;
use crate::deliver::{Format, SystemRoots, Upstream};
use crate::escape;
use crate::event::{Event, EventId};
use crate::queue::{DecryptError, Error, Flaw, Inspect, OpenDelivery, StoredEvent, StoredPage};
use crate::wechat::{Credentials, Mode, OpenError, Query};

/// The most findings that are listed; the rest is counted.
const MAX_FINDINGS: usize = 20;

/// What a deep audit found.
#[derive(Debug, Default, Serialize)]
pub(super) struct DeepAudit {
    /// Events read back.
    events: u64,
    /// Pending and dead deliveries whose request could be built.
    deliverable: u64,
    /// Events whose token or key the account no longer has. Matters to `raw` targets alone.
    keys_changed: u64,
    /// Events of accounts that are no longer configured, whose pushes were not decrypted.
    account_gone: u64,
    /// How often each kind of fault was found.
    found: BTreeMap<FindingKind, u64>,
    /// The first [`MAX_FINDINGS`] findings.
    findings: Vec<AuditFinding>,
}

/// One error in the store.
#[derive(Debug, Serialize)]
struct AuditFinding {
    #[serde(serialize_with = "text_or_null")]
    event: Option<EventId>,
    target: Option<String>,
    kind: FindingKind,
    reason: String,
    remedy: &'static str,
}

/// The kind of an error, which decides its remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum FindingKind {
    /// SQLite reports a damaged file.
    File,
    /// A row cannot be read.
    Unreadable,
    /// An event is encrypted with a key that is not configured.
    Key,
    /// The decrypted text does not parse.
    Text,
    /// A column, the content key, its index entry or the number of deliveries does not match the text or the event.
    Row,
    /// The original push no longer decrypts to the stored text.
    #[serde(rename = "push")]
    StoredPush,
    /// A `raw` delivery is open, and the account no longer has the token or key of its push.
    RawKeys,
    /// A delivery is open whose target is not configured.
    Target,
    /// A delivery is open, and the event cannot be written for its target.
    Format,
}

impl FindingKind {
    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Unreadable => "unreadable",
            Self::Key => "key",
            Self::Text => "text",
            Self::Row => "row",
            Self::StoredPush => "push",
            Self::RawKeys => "raw_keys",
            Self::Target => "target",
            Self::Format => "format",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::File => {
                "keep a copy of the store's folder and check the disk; then `wxrelay store salvage` reads back what can \
                 be read, or restore a backup"
            }
            Self::Unreadable | Self::Text | Self::Row | Self::StoredPush => {
                "another program or the disk changed the store: keep a copy, check the disk, and report this; \
                 `wxrelay events show ID --text` shows what is left"
            }
            Self::Key => {
                "put the key back into queue.encryption_keys, behind the first one; without it these events cannot be read"
            }
            Self::RawKeys => {
                "the target can verify these only if it has the old token and key; if it does, put them into \
                 previous_token and previous_encoding_aes_key, else drop them when they are dead"
            }
            Self::Target => {
                "put [targets.NAME] back into the configuration; drop dead letters with \
                 `wxrelay dead drop NAME`"
            }
            Self::Format => "fix what the reason names; drop dead letters with `wxrelay dead drop NAME`",
        }
    }
}

impl DeepAudit {
    /// Whether every event can be decrypted, parsed and delivered.
    pub(super) fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    fn find(&mut self, kind: FindingKind, event: Option<EventId>, target: Option<&str>, reason: impl ToString) {
        *self.found.entry(kind).or_default() += 1;
        if self.findings.len() < MAX_FINDINGS {
            let (target, reason) = (target.map(str::to_owned), reason.to_string());
            self.findings.push(AuditFinding { event, target, kind, reason, remedy: kind.remedy() });
        }
    }
}

/// Reads the whole store, up to the newest event at the start.
pub(super) async fn audit_events(store: &Inspect, config: &Config) -> anyhow::Result<DeepAudit> {
    let checker = EventChecker::new(config)?;
    let mut deep = DeepAudit::default();
    let bar = ProgressBar::new_spinner().with_message("checking the file");
    bar.enable_steady_tick(Duration::from_millis(200));
    for finding in store.check_file().await? {
        deep.find(FindingKind::File, None, None, finding);
    }
    if let Ok(stats) = store.stats().await {
        bar.set_style(ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} events, {eta} left")?);
        bar.set_length(stats.events);
    }
    for orphan in store.orphans(MAX_FINDINGS).await.unwrap_or_default() {
        deep.find(FindingKind::Row, Some(orphan), None, Flaw::Missing);
    }
    if let Err(error) = read_all(store, &checker, &mut deep, &bar).await {
        let reason = format!("events after the first {} cannot be read: {error}", deep.events);
        deep.find(FindingKind::File, None, None, reason);
    }
    bar.finish_and_clear();
    Ok(deep)
}

async fn read_all(
    store: &Inspect,
    checker: &EventChecker,
    deep: &mut DeepAudit,
    bar: &ProgressBar,
) -> Result<(), Error> {
    let Some(until) = store.newest().await? else { return Ok(()) };
    let mut after = None;
    loop {
        let StoredPage { events, last } = store.read_back(after, until).await?;
        events.iter().for_each(|read| checker.event(read, deep));
        bar.inc(events.len() as u64);
        if last.is_none() {
            return Ok(());
        }
        after = last;
    }
}

/// Checks events against the configured accounts and targets.
struct EventChecker {
    accounts: HashMap<Arc<str>, Credentials>,
    targets: HashMap<Arc<str>, Upstream>,
    now: UnixMillis,
}

impl EventChecker {
    fn new(config: &Config) -> anyhow::Result<Self> {
        let accounts = || config.accounts.iter().map(|account| (&account.name, &account.credentials));
        let trust = SystemRoots::default();
        let target = |settings: &crate::dispatcher::TargetSettings| {
            let name = &settings.target.name;
            let upstream = Upstream::new(settings.target.clone(), accounts(), &trust);
            upstream.map(|upstream| (name.clone(), upstream)).with_context(|| format!("targets.{name}"))
        };
        let targets = config.targets.iter().map(target).collect::<anyhow::Result<_>>()?;
        let accounts = accounts().map(|(name, credentials)| (name.clone(), credentials.clone())).collect();
        Ok(Self { accounts, targets, now: UnixMillis::now() })
    }

    fn event(&self, read: &StoredEvent, deep: &mut DeepAudit) {
        deep.events += 1;
        for flaw in &read.flaws {
            let kind = match flaw {
                Flaw::Encrypted(DecryptError::KeyMissing(_)) => FindingKind::Key,
                Flaw::Unreadable(_) | Flaw::Encrypted(DecryptError::KeyUnknown | DecryptError::Damaged) => {
                    FindingKind::Unreadable
                }
                Flaw::Text => FindingKind::Text,
                Flaw::Column(_)
                | Flaw::ContentKey
                | Flaw::Checksum
                | Flaw::HeldReply
                | Flaw::Missing
                | Flaw::Unknown
                | Flaw::Deliveries { .. } => FindingKind::Row,
            };
            deep.find(kind, Some(read.id), None, flaw);
        }
        let Some(event) = &read.event else { return };
        let push = self.accounts.get(&event.account).map(|account| open_stored_push(account, event));
        match &push {
            None => deep.account_gone += 1,
            Some(StoredPush::KeysChanged) => deep.keys_changed += 1,
            Some(StoredPush::Damaged(reason)) => deep.find(FindingKind::StoredPush, Some(event.id), None, reason),
            Some(StoredPush::Opens) => {}
        }
        let keys_changed = matches!(push, Some(StoredPush::KeysChanged));
        for delivery in &read.open {
            match self.delivery(event, delivery, keys_changed) {
                Ok(()) => deep.deliverable += 1,
                Err((kind, reason)) => deep.find(kind, Some(event.id), delivery.target.as_deref(), reason),
            }
        }
    }

    fn delivery(
        &self,
        event: &Event,
        delivery: &OpenDelivery,
        keys_changed: bool,
    ) -> Result<(), (FindingKind, String)> {
        let state = delivery.state.name();
        let Some(name) = &delivery.target else {
            return Err((FindingKind::Target, format!("{state}, and the store has no name for its target")));
        };
        let Some(upstream) = self.targets.get(name.as_str()) else {
            return Err((FindingKind::Target, format!("{state}, and the target is not configured")));
        };
        let written = upstream.rehearse(event, self.now);
        written.map_err(|error| (FindingKind::Format, format!("{state}: {:#}", anyhow::Error::from(error))))?;
        if keys_changed && upstream.target().format == Format::Raw {
            return Err((
                FindingKind::RawKeys,
                format!("{state}, and its account no longer has the token or key of its push"),
            ));
        }
        Ok(())
    }
}

/// The state of a stored push, decrypted again.
enum StoredPush {
    Opens,
    KeysChanged,
    Damaged(String),
}

/// Decrypts a push with an account's current keys, in the mode in which it was received.
fn open_stored_push(account: &Credentials, event: &Event) -> StoredPush {
    let account = Credentials { mode: event.mode, ..account.clone() };
    let query = match Query::parse(&event.query) {
        Ok(query) => query,
        Err(error) => return StoredPush::Damaged(format!("its stored push cannot be decrypted: {error}")),
    };
    match account.open(&query, &event.body) {
        Ok(opened) if opened.clear == event.clear => StoredPush::Opens,
        Ok(_) => StoredPush::Damaged("its stored push decrypts to another text than the stored one".to_owned()),
        // The signature is valid, so the ciphertext is unchanged.
        Err(OpenError::Envelope(_) | OpenError::NoKey) => StoredPush::KeysChanged,
        // The token is current, so the ciphertext has changed.
        Err(OpenError::Signature) if event.mode != Mode::Plaintext && matches!(account.signed(&query), Ok(true)) => {
            StoredPush::Damaged(
                "its stored push cannot be decrypted: the ciphertext does not match its signature".to_owned(),
            )
        }
        Err(OpenError::Signature) => StoredPush::KeysChanged,
        Err(error) => {
            StoredPush::Damaged(format!("its stored push cannot be decrypted: {:#}", anyhow::Error::from(error)))
        }
    }
}

impl fmt::Display for DeepAudit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, deliverable, keys_changed, account_gone, found, findings } = self;
        for AuditFinding { event, target, kind, reason, remedy } in findings {
            let event = event.map_or_else(|| "the store".to_owned(), |id| id.to_string());
            let target = target.as_ref().map(|target| format!(" for {target}")).unwrap_or_default();
            let finding = format!("{}: {event}{target}: {reason}", kind.name());
            writeln!(f, "{}\n  {remedy}", escape::line(&finding))?;
        }
        let left = found.values().sum::<u64>() - findings.len() as u64;
        if left > 0 {
            writeln!(f, "and {left} more")?;
        }
        if *keys_changed > 0 {
            writeln!(
                f,
                "{keys_changed} events came with a token or key that their account no longer has: only `raw` targets are affected"
            )?;
        }
        if *account_gone > 0 {
            writeln!(
                f,
                "{account_gone} events came by accounts that are no longer configured: their pushes were not decrypted"
            )?;
        }
        write!(f, "{events} events read back, {deliverable} open deliveries can be attempted: ")?;
        if found.is_empty() {
            return writeln!(f, "every event can be decrypted, parsed and delivered");
        }
        let counts: Vec<_> = found.iter().map(|(kind, count)| format!("{count} {}", kind.name())).collect();
        writeln!(f, "FOUND {}", counts.join(", "))
    }
}

fn text_or_null<S: Serializer>(id: &Option<EventId>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}
