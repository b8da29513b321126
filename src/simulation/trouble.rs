//! The store in trouble for a while: it is slow, it fails, or another program holds its lock.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::driver::{Driver, RelayRun};

impl Driver {
    pub(super) fn trouble(&mut self, life: &RelayRun) {
        let until = self.world.state().elapsed() + self.rng.millis(10, 30_000);
        match self.rng.below(3) {
            0 => {
                let stall = self.rng.millis(1, 3000);
                self.world.note(|| format!("commits take {stall:?} until {until:?}"));
                self.world.state().faults.stall = (until, stall);
            }
            1 => {
                let percent = self.rng.pick(&[30, 60, 100]);
                self.world.note(|| format!("{percent} % of commits fail until {until:?}"));
                self.world.state().faults.fail = (until, percent);
            }
            _ => self.lock(life, until),
        }
    }

    /// Another program opens a transaction, and leaves it open.
    fn lock(&self, life: &RelayRun, until: Duration) {
        let shell = Connection::open(self.settings.folder().unwrap().join("wxrelay.db")).unwrap();
        shell.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        // Simulated time does not pass while this waits, so the holder of the lock would not release it.
        shell.busy_timeout(Duration::ZERO).unwrap();
        if shell.execute_batch("BEGIN IMMEDIATE").is_err() {
            return;
        }
        self.world.note(|| format!("another program holds the lock until {until:?}"));
        let mut state = self.world.state();
        state.faults.lock = (until, Some(shell));
        let wait = until - state.elapsed();
        drop(state);
        let world = Arc::clone(&self.world);
        drop(life.tasks.spawn(async move {
            tokio::time::sleep(wait).await;
            world.state().faults.lock.1 = None;
        }));
    }
}
