//! `wxrelay audit --deep`: every stored event is opened, parsed and written for its targets once more.
//!
//! The queue reads events back and holds their rows against each other, `wechat` opens their pushes anew with the
//! configured keys, and `deliver` writes the request of every delivery that an attempt may still be made at. Nothing is
//! sent and nothing is changed. Findings quote no event.

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
use crate::event::{Event, EventId};
use crate::queue::{Error, Flaw, Inspect, OpenDelivery, ReadBack, Unopened};
use crate::wechat::{Credentials, Mode, OpenError, Query};

/// Findings that are told one by one; the rest is counted.
const TOLD: usize = 20;

/// What a deep audit found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Deep {
    /// Events read back.
    events: u64,
    /// Pending and dead deliveries that could be written for their targets.
    deliverable: u64,
    /// Events whose token or key the account no longer has. Matters to `raw` targets alone.
    keys_changed: u64,
    /// Events of accounts that are no longer configured, so that their pushes were not opened.
    account_gone: u64,
    /// How often each kind of fault was found.
    found: BTreeMap<Kind, u64>,
    /// The first of them.
    findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Debug, Serialize)]
struct Finding {
    #[serde(serialize_with = "text_or_null")]
    event: Option<EventId>,
    target: Option<String>,
    kind: Kind,
    reason: String,
    remedy: &'static str,
}

/// What is wrong, and so what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// SQLite finds the file damaged.
    File,
    /// A row cannot be read.
    Unreadable,
    /// An event is sealed by a key that is not given.
    Key,
    /// The opened text does not parse.
    Text,
    /// A column, the content key, its place in the index or the number of deliveries is not what the text or the event
    /// says.
    Row,
    /// The push as it came no longer opens to the stored text.
    Push,
    /// A `raw` delivery is open, and the account no longer has the token or key of its push.
    RawKeys,
    /// A delivery is open whose target is not configured.
    Target,
    /// A delivery is open, and the event cannot be written for its target.
    Format,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Unreadable => "unreadable",
            Self::Key => "key",
            Self::Text => "text",
            Self::Row => "row",
            Self::Push => "push",
            Self::RawKeys => "raw_keys",
            Self::Target => "target",
            Self::Format => "format",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::File => {
                "keep a copy of the store's folder and look at the disk; then restore a backup, or let \
                 `sqlite3 wxrelay.db .recover` save what it can"
            }
            Self::Unreadable | Self::Text | Self::Row | Self::Push => {
                "somebody wrote to the store, or the disk did: keep a copy, look at the disk, and report this; \
                 `wxrelay events show ID --text` shows what is left"
            }
            Self::Key => {
                "put the key back into queue.encryption_keys, behind the first one; without it nobody reads these events"
            }
            Self::RawKeys => {
                "the target can verify these only while it knows the old token and key; if it does, put them into \
                 previous_token and previous_encoding_aes_key, else drop them when they are dead"
            }
            Self::Target => {
                "put [targets.NAME] back into the configuration; dead letters can be given up with \
                 `wxrelay dead drop NAME`"
            }
            Self::Format => {
                "put right what the reason names; dead letters can be given up with `wxrelay dead drop NAME`"
            }
        }
    }
}

impl Deep {
    /// Whether every event can be opened, parsed and delivered.
    pub(super) fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    fn find(&mut self, kind: Kind, event: Option<EventId>, target: Option<&str>, reason: impl ToString) {
        *self.found.entry(kind).or_default() += 1;
        if self.findings.len() < TOLD {
            let (target, reason) = (target.map(str::to_owned), reason.to_string());
            self.findings.push(Finding { event, target, kind, reason, remedy: kind.remedy() });
        }
    }
}

/// Reads the whole store, up to the event that is the newest now.
pub(super) fn walk(store: &Inspect, config: &Config) -> anyhow::Result<Deep> {
    let judge = Judge::new(config)?;
    let mut deep = Deep::default();
    let bar = ProgressBar::new_spinner().with_message("checking the file");
    bar.enable_steady_tick(Duration::from_millis(200));
    for finding in store.check_file()? {
        deep.find(Kind::File, None, None, finding);
    }
    if let Ok(stats) = store.stats() {
        bar.set_style(ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} events, {eta} left")?);
        bar.set_length(stats.events);
    }
    if let Err(error) = read_all(store, &judge, &mut deep, &bar) {
        let reason = format!("events behind the {} first cannot be read: {error}", deep.events);
        deep.find(Kind::File, None, None, reason);
    }
    bar.finish_and_clear();
    Ok(deep)
}

fn read_all(store: &Inspect, judge: &Judge, deep: &mut Deep, bar: &ProgressBar) -> Result<(), Error> {
    let Some(until) = store.newest()? else { return Ok(()) };
    let mut after = None;
    loop {
        let last = store.read_back(after, until, |read| {
            judge.event(&read, deep);
            bar.inc(1);
        })?;
        if last.is_none() {
            return Ok(());
        }
        after = last;
    }
}

/// Who events come from and go to, by the configuration.
struct Judge {
    accounts: HashMap<Arc<str>, Credentials>,
    targets: HashMap<Arc<str>, Upstream>,
    now: UnixMillis,
}

impl Judge {
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

    fn event(&self, read: &ReadBack, deep: &mut Deep) {
        deep.events += 1;
        for flaw in &read.flaws {
            let kind = match flaw {
                Flaw::Sealed(Unopened::KeyMissing(_)) => Kind::Key,
                Flaw::Unreadable(_) | Flaw::Sealed(Unopened::KeyUnknown | Unopened::Damaged) => Kind::Unreadable,
                Flaw::Text => Kind::Text,
                Flaw::Column(_) | Flaw::ContentKey | Flaw::Unknown | Flaw::Deliveries { .. } => Kind::Row,
            };
            deep.find(kind, Some(read.id), None, flaw);
        }
        let Some(event) = &read.event else { return };
        let push = self.accounts.get(&event.account).map(|account| push(account, event));
        match &push {
            None => deep.account_gone += 1,
            Some(Push::KeysChanged) => deep.keys_changed += 1,
            Some(Push::Damaged(reason)) => deep.find(Kind::Push, Some(event.id), None, reason),
            Some(Push::Opens) => {}
        }
        let keys_changed = matches!(push, Some(Push::KeysChanged));
        for delivery in &read.open {
            match self.delivery(event, delivery, keys_changed) {
                Ok(()) => deep.deliverable += 1,
                Err((kind, reason)) => deep.find(kind, Some(event.id), delivery.target.as_deref(), reason),
            }
        }
    }

    fn delivery(&self, event: &Event, delivery: &OpenDelivery, keys_changed: bool) -> Result<(), (Kind, String)> {
        let state = delivery.state.name();
        let Some(name) = &delivery.target else {
            return Err((Kind::Target, format!("{state}, and the store has no name for its target")));
        };
        let Some(upstream) = self.targets.get(name.as_str()) else {
            return Err((Kind::Target, format!("{state}, and the target is not configured")));
        };
        let written = upstream.rehearse(event, self.now);
        written.map_err(|error| (Kind::Format, format!("{state}: {:#}", anyhow::Error::from(error))))?;
        if keys_changed && upstream.target().format == Format::Raw {
            return Err((
                Kind::RawKeys,
                format!("{state}, and its account no longer has the token or key of its push"),
            ));
        }
        Ok(())
    }
}

/// What a stored push is, opened anew.
enum Push {
    Opens,
    KeysChanged,
    Damaged(String),
}

/// Opens a push with an account's keys as they are now, in the mode that it came in.
fn push(account: &Credentials, event: &Event) -> Push {
    let account = Credentials { mode: event.mode, ..account.clone() };
    let query = match Query::parse(&event.query) {
        Ok(query) => query,
        Err(error) => return Push::Damaged(format!("its stored push does not open: {error}")),
    };
    match account.open(&query, &event.body) {
        Ok(opened) if opened.clear == event.clear => Push::Opens,
        Ok(_) => Push::Damaged("its stored push opens to another text than the stored one".to_owned()),
        // The signature held, so what is sealed is as it came.
        Err(OpenError::Envelope(_) | OpenError::NoKey) => Push::KeysChanged,
        // The token is one of ours, so it is the sealed text that is another.
        Err(OpenError::Signature) if event.mode != Mode::Plaintext && matches!(account.signed(&query), Ok(true)) => {
            Push::Damaged("its stored push does not open: the sealed text is not the one that was signed".to_owned())
        }
        Err(OpenError::Signature) => Push::KeysChanged,
        Err(error) => Push::Damaged(format!("its stored push does not open: {:#}", anyhow::Error::from(error))),
    }
}

impl fmt::Display for Deep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, deliverable, keys_changed, account_gone, found, findings } = self;
        for Finding { event, target, kind, reason, remedy } in findings {
            let event = event.map_or_else(|| "the store".to_owned(), |id| id.to_string());
            let target = target.as_ref().map(|target| format!(" for {target}")).unwrap_or_default();
            writeln!(f, "{}: {event}{target}: {reason}\n  {remedy}", kind.name())?;
        }
        let left = found.values().sum::<u64>() - findings.len() as u64;
        if left > 0 {
            writeln!(f, "and {left} more")?;
        }
        if *keys_changed > 0 {
            writeln!(
                f,
                "{keys_changed} events came with a token or key that their account no longer has: only `raw` targets would notice"
            )?;
        }
        if *account_gone > 0 {
            writeln!(
                f,
                "{account_gone} events came by accounts that are no longer configured: their pushes were not opened"
            )?;
        }
        write!(f, "{events} events read back, {deliverable} open deliveries can be made: ")?;
        if found.is_empty() {
            return writeln!(f, "every event can be opened, parsed and delivered");
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
