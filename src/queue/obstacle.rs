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
    /// PostgreSQL has not answered for more than 5 s.
    Away,
    /// PostgreSQL has no synchronous standby, and `queue.standby` requires one.
    NoStandby,
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
            Self::Away => "store-away",
            Self::NoStandby => "no-standby",
            Self::Closed => "store-closed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Error, Queue, Settings};

    #[tokio::test]
    async fn a_closed_queue_takes_no_events() {
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue::open(&Settings::for_tests(folder.path()), drop).await.unwrap();
        assert_eq!(queue.obstacle(), None);
        assert!(queue.ping().await.is_ok());
        queue.clone().close().await;
        assert!(matches!(queue.ping().await, Err(Error::Closed)));
        assert_eq!(queue.obstacle(), Some(Obstacle::Closed));
    }
}
