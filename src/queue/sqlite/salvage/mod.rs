//! Reading back a store that was moved aside: every event and delivery that can be read goes into the live store.
//!
//! SQLite refuses a damaged database where it meets the damage. Here the pages are read one by one (`pages.rs`,
//! `record.rs`), the rows sorted (`stage.rs`), and each event is compared with its checksum and its content key. A
//! delivery is in a table and, while it is pending or dead, in an index too: where one of the two is damaged, the other
//! counts, and pending beats everything else, as an event may come twice but not never.

mod events;
mod pages;
mod record;
mod stage;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Serialize;

use self::events::EventReader;
use self::pages::DamagedPages;
use self::stage::Stage;
use super::damage::quarantine::{DamagedStore, list_damaged};
use super::run_blocking;
use crate::event::EventId;
use crate::queue::{EncryptionKeys, Error, Queue};

/// Events of one step.
const STEP: usize = 64;
/// The most events that a report names one by one.
const NAMED: usize = 1000;

/// What to read back.
#[derive(Clone, Debug)]
pub struct Salvage {
    /// The folder of the live store.
    pub store: PathBuf,
    /// The damaged store; `None`: all that were moved aside.
    pub from: Option<PathBuf>,
    /// Whether only to read and count.
    pub dry_run: bool,
    /// The keys that payloads are encrypted with.
    pub keys: EncryptionKeys,
}

/// What was read back of the damaged stores.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SalvageReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// One entry for each store.
    pub stores: Vec<SalvagedStore>,
}

/// What was read back of one damaged store.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SalvagedStore {
    /// Its folder.
    pub folder: String,
    /// Its folder's name from now on; `None` if it was not renamed.
    pub salvaged_as: Option<String>,
    /// Events that were read.
    pub events: u64,
    /// Those that the live store did not have, and has now.
    pub stored: u64,
    /// Those that the live store has, or had, by their content keys.
    pub present: u64,
    /// Deliveries that are pending again.
    pub pending: u64,
    /// Deliveries that are dead letters, as before.
    pub dead: u64,
    /// Deliveries that had ended otherwise.
    pub ended: u64,
    /// Pages of which not everything could be read.
    pub damaged_pages: u64,
    /// How many events are known to have been there, and cannot be read.
    pub unreadable: u64,
    /// How many events are stored without some of their deliveries: which had ended, unless indexes are damaged too.
    pub incomplete: u64,
    /// The first of those events.
    pub flaws: Vec<SalvageFlaw>,
}

/// An event that could not be read, or not with all its deliveries.
#[derive(Clone, Debug, Serialize)]
pub struct SalvageFlaw {
    /// The event.
    pub event: EventId,
    /// What is wrong with it.
    pub reason: String,
    /// The targets that it was pending for or dead at.
    pub open: Vec<String>,
}

impl SalvageReport {
    /// Whether everything could be read.
    pub fn is_complete(&self) -> bool {
        self.stores.iter().all(|store| store.unreadable == 0 && store.incomplete == 0 && store.damaged_pages == 0)
    }
}

impl SalvagedStore {
    fn name(&mut self, flaw: SalvageFlaw) {
        tracing::warn!(event = %flaw.event, reason = flaw.reason, "event not salvaged whole");
        if self.flaws.len() < NAMED {
            self.flaws.push(flaw);
        }
    }
}

/// Reads back the damaged stores into the live one.
///
/// # Errors
/// If a folder cannot be read or the live store cannot be written. What was read until then is stored, and another run
/// continues.
pub async fn run(queue: &Queue, salvage: &Salvage) -> Result<SalvageReport, Error> {
    let folders = match &salvage.from {
        Some(folder) => vec![folder.clone()],
        None => list_damaged(&salvage.store)?.into_iter().map(|store| store.path).collect(),
    };
    let mut report = SalvageReport { dry_run: salvage.dry_run, stores: Vec::new() };
    for folder in folders {
        report.stores.push(one(queue, salvage, folder).await?);
    }
    Ok(report)
}

async fn one(queue: &Queue, salvage: &Salvage, folder: PathBuf) -> Result<SalvagedStore, Error> {
    let mut done = SalvagedStore { folder: folder.display().to_string(), ..SalvagedStore::default() };
    let (keys, from) = (salvage.keys.clone(), folder.clone());
    let mut reader = run_blocking(move || {
        let pages = DamagedPages::open(&from).map_err(|source| Error::io(&from, source))?;
        let stage = Stage::fill(&from, &pages)?;
        EventReader::new(pages, stage, &keys)
    })
    .await?;
    done.damaged_pages = reader.damaged_pages();
    let mut after = None;
    loop {
        let (back, batch) = run_blocking(move || {
            let batch = reader.next(after, STEP)?;
            Ok((reader, batch))
        })
        .await?;
        reader = back;
        after = batch.last;
        done.events += batch.events.len() as u64;
        for event in &batch.events {
            let [pending, dead, ended] = event.count();
            (done.pending, done.dead, done.ended) = (done.pending + pending, done.dead + dead, done.ended + ended);
        }
        done.unreadable += batch.unreadable.len() as u64;
        done.incomplete += batch.incomplete.len() as u64;
        batch.unreadable.into_iter().chain(batch.incomplete).for_each(|flaw| done.name(flaw));
        if !salvage.dry_run && !batch.events.is_empty() {
            // Callers have a folder to salvage from only where the live store is in one.
            let Queue::Embedded(engine) = queue else { return Err(Error::Closed) };
            let step = engine.import(batch.events).await?;
            (done.stored, done.present) = (done.stored + step.stored, done.present + step.present);
            done.unreadable += step.refused.len() as u64;
            let reason = "its id is that of another event in the live store";
            let refused = |event| SalvageFlaw { event, reason: reason.to_owned(), open: Vec::new() };
            step.refused.into_iter().map(refused).for_each(|flaw| done.name(flaw));
        }
        if after.is_none() {
            break;
        }
    }
    let is_locked_out = reader.needs_key();
    drop(reader);
    if !salvage.dry_run && !is_locked_out {
        done.salvaged_as = mark(salvage, &folder)?;
        tracing::info!(
            path = done.salvaged_as,
            events = done.events,
            stored = done.stored,
            unreadable = done.unreadable,
            "damaged store salvaged"
        );
    }
    Ok(done)
}

/// Renames the folder, if it is one that was moved aside.
fn mark(salvage: &Salvage, folder: &Path) -> Result<Option<String>, Error> {
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = canonical(folder);
    let listed = list_damaged(&salvage.store)?;
    let moved: Option<DamagedStore> = listed.into_iter().find(|store| canonical(&store.path) == folder);
    Ok(moved.map(|store| store.mark_salvaged()).transpose()?.map(|path| path.display().to_string()))
}
