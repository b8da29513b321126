//! The engine as a part of a simulation: its writer is a task of the caller's runtime, and fails when told.

use std::time::Duration;

use rusqlite::config::DbConfig;

use super::ballast::Ballast;
use super::{Sqlite, WAITING_COMMANDS, channel};
use crate::queue::{Error, Settings};

/// What goes wrong with the store; asked each time.
pub(crate) struct Faults {
    /// How long the writer takes to see what it is asked.
    pub(crate) stall: Box<dyn FnMut() -> Duration + Send>,
    /// Whether this commit fails.
    pub(crate) fails: Box<dyn FnMut() -> bool + Send>,
}

impl Sqlite {
    /// As [`Sqlite::open`], but without a thread, and without waiting for the disk or for another program's lock.
    pub(crate) fn simulated(
        settings: &Settings,
        on_commit: Box<dyn Fn(Duration) + Send>,
        faults: Faults,
    ) -> Result<Self, Error> {
        let (mut sqlite, mut writer, receiver) = Self::assemble(settings, Ballast::small, on_commit)?;
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

/// Passes commands on to the writer, late.
async fn stall(mut asked: channel::Receiver, writer: channel::Sender, mut late: impl FnMut() -> Duration) {
    let mut batch = Vec::new();
    while asked.take(&mut batch, WAITING_COMMANDS).await > 0 {
        let wait = late();
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        for command in batch.drain(..) {
            if writer.send(command).await.is_err() {
                return;
            }
        }
    }
}
