//! The engine as a part of a simulation: its writer is a task of the caller's runtime, with injected faults.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;

use super::reserve_file::ReserveFile;
use super::{Sqlite, WAITING_COMMANDS, channel};
use crate::queue::{Error, Settings};
use crate::tuning::Tuning;

/// The store's injected faults; called each time.
pub(crate) struct Faults {
    /// How long the writer takes to see a command.
    pub(crate) stall: Box<dyn FnMut() -> Duration + Send>,
    /// Whether this commit fails.
    pub(crate) fails: Box<dyn FnMut() -> bool + Send>,
}

impl Sqlite {
    /// As [`Sqlite::open`], but without a thread, and without waiting for the disk or for another program's lock.
    pub(crate) fn simulated(
        folder: &Path,
        settings: &Settings,
        on_commit: Box<dyn Fn(Duration) + Send>,
        faults: Faults,
    ) -> Result<Self, Error> {
        let tuning = Tuning::small();
        let (mut sqlite, mut writer, receiver) =
            Self::assemble(folder, settings, &tuning, ReserveFile::small, on_commit)?;
        sqlite.clock.trust();
        let connection = &mut writer.store.connection;
        // A crash leaves the log as it is.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.execute_batch("PRAGMA synchronous = OFF")?;
        connection.busy_timeout(Duration::ZERO)?;
        connection.commit_hook(Some(faults.fails))?;
        let (commands, asked) = channel::channel(WAITING_COMMANDS);
        let writers = std::mem::replace(&mut sqlite.commands, commands);
        tokio::spawn(stall(asked, writers, faults.stall));
        tokio::spawn(writer.run(receiver));
        Ok(sqlite)
    }
}

/// Passes commands on to the writer, delayed.
async fn stall(
    mut asked: channel::CommandReceiver,
    writer: channel::CommandSender,
    mut late: impl FnMut() -> Duration,
) {
    let mut batch = Vec::new();
    while asked.recv_batch(&mut batch, WAITING_COMMANDS).await > 0 {
        asked.begin_batch();
        let wait = late();
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        for command in batch.drain(..) {
            if writer.send(command).await.is_err() {
                return;
            }
        }
        asked.finish_batch();
    }
}
