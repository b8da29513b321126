//! The metrics of late replies.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{AccountMetrics, Metrics};

/// What happens to the replies of an account that keeps them.
const HELD_RESULTS: [&str; 7] = ["cut", "split", "held", "picked_up", "superseded", "dropped", "held_expired"];

impl Metrics {
    /// Counts a passive reply of an account by what became of it.
    pub fn count_reply(&self, account: &str, result: &'static str) {
        self.replies.with_label_values(&[account, result]).inc();
    }

    /// Sets how many replies are held, where the account keeps them.
    pub fn set_held_replies(&self, held: &BTreeMap<String, u64>) {
        for account in &*self.keeping.lock() {
            let count = held.get(&**account).copied().unwrap_or(0);
            self.held_replies.with_label_values(&[account]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

impl AccountMetrics {
    /// Begins or ends the account's series of replies that are held or cut.
    pub fn keep_replies(&self, keeps: bool) {
        let name = &*self.name;
        if !keeps {
            self.keeping.lock().remove(name);
            // Fails only if there is no such series.
            return drop(self.held_replies.remove_label_values(&[name]));
        }
        self.keeping.lock().insert(Arc::clone(&self.name));
        self.held_replies.with_label_values(&[name]);
        // Prometheus' `increase` misses the first event of a counter that appears with it.
        for result in HELD_RESULTS {
            self.replies.with_label_values(&[name, result]);
        }
    }

    /// Sets whether the account's reply window is open; `None` for no window removes the series.
    pub fn reply_window(&self, open: Option<bool>) {
        match open {
            Some(open) => self.reply_window_open.with_label_values(&[&*self.name]).set(open.into()),
            // Fails only if there is no such series.
            None => drop(self.reply_window_open.remove_label_values(&[&*self.name])),
        }
    }
}
