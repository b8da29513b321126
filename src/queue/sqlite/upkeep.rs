//! What the writer does beside its commands to keep the store's files whole and small.

use std::path::PathBuf;
use std::process;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use tokio::time::Instant;

use super::file_watch::LostFile;
use super::scrub::Scrub;
use super::store::Store;
use super::write_back;
use super::writer::{TICK, Writer, stop_if_lost};
use crate::queue::encryption::EncryptionKeys;
use crate::queue::{EXIT_IO, Error};
use crate::telemetry::{self, LogThrottle};

/// The pause between two tries to write the store back onto a full disk.
const WRITE_BACK_PAUSE: Duration = Duration::from_secs(1);

/// What opening the store again takes.
pub(super) struct OpenOptions {
    pub(super) folder: PathBuf,
    pub(super) encryption_keys: EncryptionKeys,
    pub(super) scrub_pages: u64,
    /// As for [`Store::keep_log_below`].
    pub(super) free: u64,
}

impl Writer {
    /// Looks for files that nothing but other programs change; once a second, also while no push comes.
    pub(super) fn check_files_if_due(&mut self) {
        if self.checked.elapsed() < TICK {
            return;
        }
        self.checked = Instant::now();
        self.lock.restore_file();
        if let Err(lost) = self.store.check_files().and_then(|()| self.store.files.check_index()) {
            self.write_store_back(&lost);
        }
    }

    /// Makes sure that what is committed is in files that the next process finds. Call it before an answer.
    pub(super) fn keep_files(&mut self) {
        if let Err(lost) = self.store.check_files() {
            self.write_store_back(&lost);
        }
    }

    /// Copies the store from its open files into new ones, and continues with those; ends the process if that fails.
    ///
    /// Waits while nothing can be written: the end of the process would be the end of what has no name any more.
    #[cold]
    #[expect(clippy::disallowed_methods, reason = "this thread is the writer's own, and has nothing else to do")]
    fn write_store_back(&mut self, LostFile { path, fault }: &LostFile) {
        // A unit test removes its folder while the writer's thread still ends, and is not ended for it.
        if cfg!(test) && !self.open_options.folder.exists() {
            return;
        }
        let (start, throttle) = (Instant::now(), LogThrottle::default());
        tracing::error!(path = %path.display(), %fault, "store file lost while open; writing the store back");
        self.is_writing_back.store(true, Ordering::Relaxed);
        let error = loop {
            match self.try_write_back() {
                Ok(()) => break None,
                Err(Error::Full) if self.capacity.release_reserve() => {}
                Err(error @ (Error::Full | Error::ReadOnly { .. } | Error::Io { .. })) => {
                    if throttle.allow().is_some() {
                        let (path, remedy) = (self.open_options.folder.display(), error.remedy());
                        tracing::error!(%path, %error, remedy, "store not written back yet; do not stop the relay");
                    }
                    thread::sleep(WRITE_BACK_PAUSE);
                }
                Err(error) => break Some(error),
            }
        };
        self.is_writing_back.store(false, Ordering::Relaxed);
        let path = self.open_options.folder.display().to_string();
        let Some(error) = error else {
            let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(
                path,
                took_ms,
                "store written back, nothing is lost; stop the relay before you move its files"
            );
            return;
        };
        let open_files = self.lock.present_path().map(|path| path.display().to_string());
        tracing::error!(path, open_files, %error, "store cannot be written back; exiting before anything else is answered");
        telemetry::flush();
        if cfg!(not(test)) {
            process::exit(EXIT_IO.into());
        }
    }

    fn try_write_back(&mut self) -> Result<(), Error> {
        let OpenOptions { folder, encryption_keys, scrub_pages, free } = &self.open_options;
        let renamed = write_back::write_back(&self.store, folder, &self.lock)?;
        let mut store = Store::open(folder)?.with_keys(encryption_keys, folder)?;
        store.keep_log_below(*free);
        store.dedup.replay_window = self.store.dedup.replay_window.clone();
        self.scrub = Scrub::new(folder, *scrub_pages);
        // Or SQLite could delete the log by its name, which is the new store's.
        self.store.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        self.store = store;
        if let Some(lock) = renamed {
            if let Some(path) = self.lock.present_path() {
                tracing::warn!(path = %path.display(), "the folder that was renamed holds the same events; start no relay on it");
            }
            self.lock = lock;
        }
        Ok(())
    }

    fn measure(&mut self) {
        if let Err(error) = self.capacity.measure(&self.store) {
            stop_if_lost(Some(&self.store), &error);
        }
    }

    /// After the answers: what was committed is durable in the log, and no caller need wait for its way into the
    /// database.
    pub(super) fn keep_log_small(&mut self) {
        // While the store fails, the probe does it.
        if self.capacity.is_failing() || !self.log.is_due(self.store.is_checkpoint_due()) {
            return;
        }
        loop {
            match self.store.write_log_back() {
                Ok(is_free) => {
                    let was_held = self.log.retry_at().is_some();
                    self.log.note(is_free, self.store.log_bytes());
                    if was_held && is_free {
                        // Publishes that there is space again, also while no push comes.
                        self.measure();
                    }
                    return;
                }
                Err(error) => {
                    stop_if_lost(Some(&self.store), &error);
                    if !self.capacity.note_failure(&error) {
                        return;
                    }
                }
            }
        }
    }
}
