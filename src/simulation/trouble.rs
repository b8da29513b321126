//! The store in trouble for a while: it is slow, it fails, or another program holds its lock.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::driver::{Driver, Life};

impl Driver {
    pub(super) fn trouble(&mut self, life: &Life) {
        let until = self.world.state().elapsed() + self.dice.millis(10, 30_000);
        match self.dice.below(3) {
            0 => {
                let stall = self.dice.millis(1, 3000);
                self.world.note(|| format!("commits take {stall:?} until {until:?}"));
                self.world.state().troubles.stall = (until, stall);
            }
            1 => {
                let percent = self.dice.pick(&[30, 60, 100]);
                self.world.note(|| format!("{percent} % of commits fail until {until:?}"));
                self.world.state().troubles.fail = (until, percent);
            }
            _ => self.lock(life, until),
        }
    }

    /// Another program opens a transaction, and leaves it open.
    fn lock(&self, life: &Life, until: Duration) {
        let shell = Connection::open(self.settings.path.join("wxrelay.db")).unwrap();
        shell.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        // Time stands still: whoever holds it now will not let go meanwhile.
        shell.busy_timeout(Duration::ZERO).unwrap();
        if shell.execute_batch("BEGIN IMMEDIATE").is_err() {
            return;
        }
        self.world.note(|| format!("another program holds the lock until {until:?}"));
        let mut state = self.world.state();
        state.troubles.lock = (until, Some(shell));
        let wait = until - state.elapsed();
        drop(state);
        let world = Arc::clone(&self.world);
        drop(life.tasks.spawn(async move {
            tokio::time::sleep(wait).await;
            world.state().troubles.lock.1 = None;
        }));
    }
}
