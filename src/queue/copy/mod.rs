//! Copying a whole store from SQLite to PostgreSQL and back: `wxrelay store copy`.
//!
//! Rows are copied as they are: ids, states, attempts, replies and the numbers of targets and keys stay, and what is
//! encrypted stays encrypted. To PostgreSQL in two steps, so that pushes are refused for seconds only: first, with the
//! relay stopped, what is pending or dead and what a push may repeat; then, beside the replicas, the rest, which is
//! finished. Back in one step, while no replica lives, into a file that becomes the store when it is complete.
//!
//! - A copy that was ended anywhere is gone on with by the next run. It goes into an empty place or a copy of the same
//!   source only; whatever a relay does to the source meanwhile makes it another one (`StoreHead::digest`).
//! - At the end the counts of both stores are compared.

mod error;
pub(super) mod rows;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

pub use self::error::CopyError;
use self::rows::{CopyPage, StoreHead};
use super::postgres;
use super::postgres::copy::{CopiedCount, CopyState, PostgresTarget};
use super::postgres::copy_source::PostgresSource;
use super::sqlite;
use super::sqlite::copy::{SqliteSource, SqliteTarget};
use super::{Audit, DeliveryState, Engine, Error, Inspect, Settings};
use crate::clock::UnixMillis;
use crate::event::EventId;

/// A page of events ends at this number, and at this many bytes.
pub(super) const PAGE_EVENTS: usize = 500;
pub(super) const PAGE_BYTES: usize = 8 << 20;
/// Keys of deleted events that are copied at a time.
const RETIRED_KEYS: usize = 5000;

/// What to copy.
#[derive(Clone, Copy, Debug)]
pub struct StoreCopy<'a> {
    /// The store that is copied.
    pub from: &'a Settings,
    /// Where the copy goes.
    pub to: &'a Settings,
    /// Whether to end when the replicas may begin.
    pub only_open: bool,
    /// Whether only to check and to count.
    pub dry_run: bool,
}

/// A step of a copy to PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CopyStep {
    /// What is not finished, or new: with every relay stopped.
    Open,
    /// The rest, beside replicas.
    Finished,
    /// Nothing more.
    Done,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug)]
pub enum CopyProgress {
    /// The number of events to copy in this step; for [`CopyStep::Done`], in the only one.
    Began(CopyStep, u64),
    /// The number of events copied since the last report.
    Copied(u64),
    /// Replicas may begin now.
    ReplicasMayStart,
    /// The counts are compared.
    Comparing,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct CopyReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Whether all is copied.
    pub complete: bool,
    /// Events that were copied by this run; of a dry run, that would be.
    pub events: u64,
    /// Those of them that are copied before the replicas may begin.
    pub open_events: u64,
    /// Events that are left out: their text was pushed again since the copy began, and stored as another event.
    pub pushed_again: u64,
    /// The counts of the store that was copied.
    pub source: Option<Audit>,
    /// The counts of the copy.
    pub copy: Option<Audit>,
    /// Where they differ, beyond what replicas have done since.
    pub differences: Vec<String>,
}

type Tell<'a> = &'a mut (dyn FnMut(CopyProgress) + Send);

/// Copies.
///
/// # Errors
/// If a store cannot be used, or is not one to copy from or into. What was copied stays, and another run continues.
pub async fn copy_store(copy: &StoreCopy<'_>, tell: Tell<'_>) -> Result<CopyReport, CopyError> {
    match (&copy.from.engine, &copy.to.engine) {
        (Engine::Embedded { path }, Engine::Postgres(to)) => Box::pin(to_postgres(copy, path, to, tell)).await,
        (Engine::Postgres(from), Engine::Embedded { path }) => Box::pin(to_files(copy, from, path, tell)).await,
        (Engine::Embedded { .. }, Engine::Embedded { .. }) => Err(CopyError::SameKind("SQLite")),
        (Engine::Postgres(_), Engine::Postgres(_)) => Err(CopyError::SameKind("PostgreSQL")),
    }
}

async fn to_postgres(
    copy: &StoreCopy<'_>,
    folder: &Path,
    to: &postgres::Settings,
    tell: Tell<'_>,
) -> Result<CopyReport, CopyError> {
    let source = FileSource::open(folder).await?;
    let head = source.head().await?;
    check_keys(&head, copy.to)?;
    let target = PostgresTarget::new(to);
    let mut report = CopyReport { dry_run: copy.dry_run, ..CopyReport::default() };
    let begun = target.check(&head).await?;
    let window = copy.from.dedup_window.max(copy.from.replay_window);
    let window = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
    let cutoff = EventId::first_at(UnixMillis(UnixMillis::now().0.saturating_sub(window)));
    let mut state = begun.unwrap_or(CopyState { step: CopyStep::Open, cutoff, after: 0 });
    if copy.dry_run {
        let (open, rest) = (source.open_events(state.cutoff).await?, source.finished_events(0, state.cutoff).await?);
        (report.open_events, report.events) = (open.len() as u64, (open.len() + rest.len()) as u64);
        return Ok(report);
    }
    if begun.is_none() {
        target.begin(&head, state.cutoff).await?;
        // A replica that began at the same moment has kept this from beginning.
        state = target.check(&head).await?.ok_or_else(|| CopyError::NotEmpty(target.name()))?;
    }
    if state.step == CopyStep::Open {
        target.add_head(&head).await?;
        for keys in source.retired_keys().await?.chunks(RETIRED_KEYS) {
            target.add_retired(keys).await?;
        }
        let mut ids = source.open_events(state.cutoff).await?;
        ids.retain(|id| *id > state.after);
        tell(CopyProgress::Began(CopyStep::Open, ids.len() as u64));
        report.open_events = add_all(&source, &target, ids, tell).await?;
        report.events += report.open_events;
        target.end_step(CopyStep::Open).await?;
        (state.step, state.after) = (CopyStep::Finished, 0);
    }
    tell(CopyProgress::ReplicasMayStart);
    if copy.only_open {
        return Ok(report);
    }
    if state.step == CopyStep::Finished {
        let ids = source.finished_events(state.after, state.cutoff).await?;
        tell(CopyProgress::Began(CopyStep::Finished, ids.len() as u64));
        report.events += add_all(&source, &target, ids, tell).await?;
        target.end_step(CopyStep::Finished).await?;
    }
    tell(CopyProgress::Comparing);
    compare_copied(&source, &target, &head, &mut report).await?;
    report.complete = report.differences.is_empty();
    Ok(report)
}

async fn add_all(
    source: &FileSource,
    target: &PostgresTarget,
    ids: Vec<i64>,
    tell: Tell<'_>,
) -> Result<u64, CopyError> {
    let ids = Arc::new(ids);
    let mut at = 0;
    while at < ids.len() {
        let page = source.page(&ids, at).await?;
        target.add(&page).await?;
        at += page.events.len();
        tell(CopyProgress::Copied(page.events.len() as u64));
    }
    Ok(at as u64)
}

/// Compares what is stored in the source with what all runs have copied, and the copy with itself. The whole counts are
/// compared where no replica has worked on the copy.
async fn compare_copied(
    source: &FileSource,
    target: &PostgresTarget,
    head: &StoreHead,
    report: &mut CopyReport,
) -> Result<(), CopyError> {
    let (of_source, of_copy) = (source.audit().await?, target.audit().await?);
    let copied = target.copied().await?;
    let mut counts: BTreeMap<(i64, i64), i64> = BTreeMap::new();
    for CopiedCount { target, state, is_skipped, count } in copied {
        *counts.entry((target.into(), state.into())).or_default() += count;
        if is_skipped && (target, state) == (0, 0) {
            report.pushed_again = u64::try_from(count).unwrap_or(0);
        }
    }
    let mut of = |target: i64, state: i64| u64::try_from(counts.remove(&(target, state)).unwrap_or(0)).unwrap_or(0);
    let mut differences = Vec::new();
    differ(&mut differences, "events", of_source.events, of(0, 0));
    differ(&mut differences, "accepted deliveries", of_source.deliveries, of(0, 1));
    for target in &of_source.targets {
        let number = head.targets.iter().find(|row| row.name == target.target).map_or(0, |row| row.number);
        let mut expected = target.counts;
        for state in DeliveryState::ALL {
            let what = format!("{} for {}", state.name(), target.target);
            differ(&mut differences, &what, *expected.of(state), of(number, state as i64));
        }
    }
    if of_source.is_clean() && !of_copy.is_clean() {
        differences.push("the counts of the copy do not add up".to_owned());
    }
    if report.pushed_again == 0 && !target.was_used().await? {
        compare(&of_source, &of_copy, &mut differences);
    }
    (report.source, report.copy, report.differences) = (Some(of_source), Some(of_copy), differences);
    Ok(())
}

fn compare(source: &Audit, copy: &Audit, differences: &mut Vec<String>) {
    if source == copy {
        return;
    }
    for (what, source, copy) in [
        ("events", source.events, copy.events),
        ("accepted deliveries", source.deliveries, copy.deliveries),
        ("unaccounted deliveries", source.unaccounted, copy.unaccounted),
        ("drift", source.drift, copy.drift),
        ("replies given", source.replies.given, copy.replies.given),
        ("replies held", source.replies.held, copy.replies.held),
    ] {
        differ(differences, what, source, copy);
    }
    for of_source in &source.targets {
        let of_copy = copy.targets.iter().find(|target| target.target == of_source.target);
        let (mut expected, mut found) = (of_source.counts, of_copy.map(|target| target.counts).unwrap_or_default());
        for state in DeliveryState::ALL {
            let what = format!("{} for {}", state.name(), of_source.target);
            differ(differences, &what, *expected.of(state), *found.of(state));
        }
    }
}

fn differ(differences: &mut Vec<String>, what: &str, source: u64, copy: u64) {
    let difference = format!("{what}: {source} in the store, {copy} copied");
    if source != copy && !differences.contains(&difference) {
        differences.push(difference);
    }
}

async fn to_files(
    copy: &StoreCopy<'_>,
    from: &postgres::Settings,
    folder: &Path,
    tell: Tell<'_>,
) -> Result<CopyReport, CopyError> {
    let source = PostgresSource::open(from).await?;
    source.expect_rest().await?;
    if let Some(spools) = Inspect::open(copy.from).await?.spools(copy.from).await?
        && let Some(events) = spools.events.filter(|events| *events > 0)
    {
        return Err(CopyError::Spooled(events));
    }
    let head = source.head().await?;
    check_keys(&head, copy.to)?;
    let mut report = CopyReport { dry_run: copy.dry_run, ..CopyReport::default() };
    let place = folder.to_owned();
    if copy.dry_run {
        sqlite::run_blocking(move || Ok(SqliteTarget::check(&place))).await??;
        report.events = source.events().await?;
        return Ok(report);
    }
    let its_head = head.clone();
    let target = sqlite::run_blocking(move || Ok(SqliteTarget::open(&place, &its_head))).await??;
    let target = Arc::new(Mutex::new(Some(target)));
    let mut after = on_target(&target, |target| target.last()).await?;
    tell(CopyProgress::Began(CopyStep::Done, source.events().await?));
    loop {
        let page = source.page(after).await?;
        let Some(last) = page.last() else { break };
        let count = page.events.len() as u64;
        on_target(&target, move |target| target.add(&page)).await?;
        (after, report.events) = (last, report.events + count);
        tell(CopyProgress::Copied(count));
    }
    let mut after = i64::MIN;
    loop {
        let keys = source.retired_keys(after, RETIRED_KEYS as i64).await?;
        let Some(last) = keys.last() else { break };
        after = last.event;
        on_target(&target, move |target| target.add_retired(&keys)).await?;
    }
    tell(CopyProgress::Comparing);
    source.expect_rest().await?;
    let (of_source, of_copy) = (source.audit().await?, on_target(&target, |target| target.audit()).await?);
    if source.head().await?.digest() != head.digest() {
        return Err(CopyError::ChangedMeanwhile);
    }
    compare(&of_source, &of_copy, &mut report.differences);
    report.complete = report.differences.is_empty();
    (report.source, report.copy) = (Some(of_source), Some(of_copy));
    if report.complete {
        let target = target.lock().take();
        sqlite::run_blocking(move || target.map_or(Ok(()), SqliteTarget::finish)).await?;
    }
    Ok(report)
}

/// What the relays at the copy could not decrypt is not copied for them.
fn check_keys(head: &StoreHead, to: &Settings) -> Result<(), CopyError> {
    let missing = head.keys.iter().find(|(_, print, is_used)| *is_used && to.encryption_keys.find(*print).is_none());
    missing.map_or(Ok(()), |(_, print, _)| Err(CopyError::KeyMissing(*print)))
}

/// The store of files that is copied; its calls block, so they are made on threads that may.
struct FileSource(Arc<Mutex<SqliteSource>>);

impl FileSource {
    async fn open(folder: &Path) -> Result<Self, CopyError> {
        let folder = folder.to_owned();
        let source = sqlite::run_blocking(move || Ok(SqliteSource::open(&folder))).await??;
        Ok(Self(Arc::new(Mutex::new(source))))
    }

    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&SqliteSource) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let source = Arc::clone(&self.0);
        sqlite::run_blocking(move || Ok(call(&source.lock()))).await
    }

    async fn head(&self) -> Result<StoreHead, Error> {
        self.call(SqliteSource::head).await?
    }

    async fn audit(&self) -> Result<Audit, Error> {
        self.call(SqliteSource::audit).await?
    }

    async fn open_events(&self, cutoff: EventId) -> Result<Vec<i64>, Error> {
        self.call(move |source| source.open_events(cutoff)).await?
    }

    async fn finished_events(&self, after: i64, cutoff: EventId) -> Result<Vec<i64>, Error> {
        self.call(move |source| source.finished_events(after, cutoff)).await?
    }

    async fn retired_keys(&self) -> Result<Vec<rows::RetiredKey>, Error> {
        self.call(SqliteSource::retired_keys).await?
    }

    async fn page(&self, ids: &Arc<Vec<i64>>, at: usize) -> Result<CopyPage, CopyError> {
        let ids = Arc::clone(ids);
        self.call(move |source| source.page(ids.get(at..).unwrap_or_default())).await?
    }
}

async fn on_target<T: Send + 'static>(
    target: &Arc<Mutex<Option<SqliteTarget>>>,
    call: impl FnOnce(&mut SqliteTarget) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let target = Arc::clone(target);
    sqlite::run_blocking(move || call(target.lock().as_mut().ok_or(Error::Closed)?)).await
}
