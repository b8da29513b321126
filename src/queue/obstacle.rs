//! Why the queue takes no new events, in a closed set: what readiness says of it.

/// What keeps new events out; each ends by itself when its cause does, but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The disk is full. Deliveries that are stored already go on.
    DiskFull,
    /// The store holds `max_size`, and nothing in it may be dropped.
    SizeLimit,
    /// The store cannot be written: a failing or read-only disk, another program's lock.
    Failing,
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
            Self::Closed => "store-closed",
        }
    }
}
