//! The state of a relay as operators see it: the types behind `/api/status` and `/api/targets`, which the commands read
//! back.
//!
//! They become JSON only in responses. The order of the fields is that of the JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::queue::view::{Counts, EventSummary, TargetStats};
use crate::queue::{MemoryUsage, Replica, Stats};

/// `/api/status`: version and configuration, whether pushes are accepted, and the queue's totals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub started_at: UnixMillis,
    pub uptime_seconds: u64,
    /// How many configurations were in use since the start.
    pub generation: u64,
    pub config_sha256: String,
    /// When this configuration came into use.
    #[serde(default)]
    pub config_since: Option<UnixMillis>,
    /// Changed keys that are applied by a restart only.
    #[serde(default)]
    pub needs_restart: Vec<String>,
    /// What is allowed in the configuration but is probably a mistake.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The store: its folder, or its PostgreSQL.
    #[serde(default)]
    pub store: String,
    /// The addresses that accept pushes, with the ports that the system chose.
    pub listen: Vec<String>,
    pub accounts: Vec<AccountOverview>,
    pub targets: Vec<ConfiguredTarget>,
    pub ready: bool,
    /// One word, as `/readyz` has it.
    pub not_ready_because: Option<String>,
    /// `agrees`, `unconfirmed`, `differs` or `jumped`: whether the clock is believed.
    #[serde(default)]
    pub clock: String,
    pub queue: QueueTotals,
    /// The replicas that share the store; none with the embedded engine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<Replica>,
}

/// An account of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountOverview {
    pub name: String,
    pub path: String,
    pub mode: String,
    pub app_id: String,
}

/// A target of [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfiguredTarget {
    pub name: String,
    pub paused: bool,
}

/// `/api/reload`: what a reload did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Always true.
    pub reloaded: bool,
    pub generation: u64,
    pub config_sha256: String,
    pub changes: Vec<KeyChange>,
    /// Changed keys that are applied by a restart only.
    pub needs_restart: Vec<String>,
    /// What is allowed in the configuration but is probably a mistake.
    pub warnings: Vec<String>,
}

/// A key that differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    pub key: String,
    pub change: KeyChangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyChangeKind {
    Added,
    Removed,
    Changed,
}

impl KeyChangeKind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
        }
    }
}

/// The queue in [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueTotals {
    pub events: u64,
    pub bytes: u64,
    /// About how many bytes of events wait in memory for targets, and the limit, `queue.max_memory`.
    #[serde(default)]
    pub memory_bytes: u64,
    #[serde(default)]
    pub max_memory_bytes: u64,
    #[serde(flatten)]
    pub counts: Counts,
    /// The folders of damaged stores that were moved aside and not salvaged yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
}

impl QueueTotals {
    /// The sums over all targets.
    pub fn new(stats: &Stats, memory: MemoryUsage) -> Self {
        let counts = stats.targets.iter().fold(Counts::default(), |sum, target| {
            let Counts { pending, delivered, dead, expired, cancelled } = target.counts;
            Counts {
                pending: sum.pending + pending,
                delivered: sum.delivered + delivered,
                dead: sum.dead + dead,
                expired: sum.expired + expired,
                cancelled: sum.cancelled + cancelled,
            }
        });
        let (memory_bytes, max_memory_bytes, damaged) = (memory.used, memory.limit, stats.damaged.clone());
        Self { events: stats.events, bytes: stats.bytes, memory_bytes, max_memory_bytes, counts, damaged }
    }
}

/// `/api/targets`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetList {
    pub targets: Vec<TargetOverview>,
}

/// A target, configured or not: deliveries remain when their target is removed from the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetOverview {
    pub name: String,
    pub configured: bool,
    pub paused: bool,
    #[serde(flatten)]
    pub counts: Counts,
    /// When the oldest event with a pending delivery was received.
    pub oldest_pending: Option<UnixMillis>,
}

impl TargetOverview {
    /// Merges the configured targets, those with deliveries in the store, and the paused ones, by name.
    pub fn merge<'a>(
        configured: impl IntoIterator<Item = &'a str>,
        stored: &[TargetStats],
        paused: &BTreeSet<String>,
    ) -> Vec<Self> {
        let mut targets: BTreeMap<String, Self> = BTreeMap::new();
        let new = |name: &str| Self {
            name: name.to_owned(),
            configured: false,
            paused: paused.contains(name),
            counts: Counts::default(),
            oldest_pending: None,
        };
        for name in configured {
            targets.entry(name.to_owned()).or_insert_with(|| new(name)).configured = true;
        }
        for stats in stored {
            let target = targets.entry(stats.target.clone()).or_insert_with(|| new(&stats.target));
            (target.counts, target.oldest_pending) = (stats.counts, stats.oldest_pending);
        }
        targets.into_values().collect()
    }
}

/// `/api/events`: one page, the newest events first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    pub events: Vec<EventSummary>,
    /// The `cursor` of the query for the next page; `None` on the last page.
    pub cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_stored_and_paused_targets_are_merged_by_name() {
        let counts = Counts { pending: 2, ..Counts::default() };
        let stored = |name: &str| TargetStats { target: name.to_owned(), counts, oldest_pending: Some(UnixMillis(7)) };
        let paused = BTreeSet::from(["gone".to_owned(), "quiet".to_owned(), "never-seen".to_owned()]);
        let merged = TargetOverview::merge(["quiet", "crm"], &[stored("crm"), stored("gone")], &paused);
        let seen: Vec<_> =
            merged.iter().map(|one| (&*one.name, one.configured, one.paused, one.counts.pending)).collect();
        assert_eq!(seen, [("crm", true, false, 2), ("gone", false, true, 2), ("quiet", true, true, 0)]);
    }

    #[test]
    fn what_is_written_as_json_is_read_back() {
        let counts = Counts { pending: 2, delivered: 1, dead: 3, expired: 4, cancelled: 5 };
        let target = TargetOverview {
            name: "crm".to_owned(),
            configured: true,
            paused: false,
            counts,
            oldest_pending: Some(UnixMillis(1_795_161_600_120)),
        };
        let text = serde_json::to_string(&target).unwrap();
        assert_eq!(
            text,
            r#"{"name":"crm","configured":true,"paused":false,"pending":2,"delivered":1,"dead":3,"expired":4,"cancelled":5,"oldest_pending":"2026-11-20T08:00:00.120Z"}"#
        );
        assert_eq!(serde_json::from_str::<TargetOverview>(&text).unwrap(), target);
    }
}
