//! Why the queue refuses new events: a closed set, which readiness reports.

/// Why new events are refused. Each reason but the last ends without a restart, when its cause does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The disk is full. Deliveries that are stored already continue.
    DiskFull,
    /// The store holds `max_size`, and nothing in it may be deleted yet.
    SizeLimit,
    /// The store cannot be written: a failing or read-only disk, another program's lock.
    Failing,
    /// The oldest change has been waiting for its commit for more than 2 s: the disk completes no flush.
    Stalled,
    /// The queue was closed, or its writer is gone.
    Closed,
}

impl Obstacle {
    /// Its name in the log, `/readyz` and the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::DiskFull => "disk-full",
            Self::SizeLimit => "queue-full",
            Self::Failing => "store-failing",
            Self::Stalled => "store-stalled",
            Self::Closed => "store-closed",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::queue::{EncryptionKeys, Error, Queue, Settings};

    #[tokio::test]
    async fn a_closed_queue_takes_no_events() {
        let folder = tempfile::tempdir().unwrap();
        let (path, day) = (folder.path().to_owned(), Duration::from_secs(86_400));
        let encryption_keys = EncryptionKeys::default();
        let settings = Settings {
            path,
            retention: day,
            dedup_window: day,
            replay_window: day,
            max_size: 1 << 30,
            max_memory: 64 << 20,
            encryption_keys,
        };
        let queue = Queue::open(&settings, drop).unwrap();
        assert_eq!(queue.obstacle(), None);
        assert!(queue.ping().await.is_ok());
        queue.clone().close().await;
        assert!(matches!(queue.ping().await, Err(Error::Closed)));
        assert_eq!(queue.obstacle(), Some(Obstacle::Closed));
    }
}
