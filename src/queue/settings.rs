//! The settings of the queue.

use std::path::PathBuf;
use std::time::Duration;

use super::EncryptionKeys;

/// `[queue]` of the configuration, for the embedded engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder that holds the store.
    pub path: PathBuf,
    /// How long finished events are kept.
    pub retention: Duration,
    /// How long a push's retries are recognised, also when finished events must be deleted early.
    pub dedup_window: Duration,
    /// How long a push is recognised at least, even when its event is deleted: as long as a copy of it is accepted.
    pub replay_window: Duration,
    /// The most bytes that the store may take: at this size new events are refused. Finished events are deleted from a
    /// little below it on.
    pub max_size: u64,
    /// About how many bytes of events wait in memory for targets, from the lease to the settlement. The rest waits in
    /// the store.
    pub max_memory: u64,
    /// The keys that payloads are encrypted with; none = payloads are stored in the clear.
    pub encryption_keys: EncryptionKeys,
}
