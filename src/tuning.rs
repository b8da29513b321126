//! Sizes that bound the work done at once. Tests pass small ones, to reach the bounds with few events.

use std::time::Duration;

/// The sizes; [`Tuning::default`] are the shipped ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Leases of fresh events that wait in a target's inbox; what does not fit is leased from the store.
    pub inbox_leases: usize,
    /// Leases that are read from the store at a time: few, as pushes wait meanwhile.
    pub lease_batch: usize,
    /// The most deliveries of a target that are attempted or wait to be settled, if its `concurrency` is not larger,
    /// and as many again whose reply is awaited: a crash repeats them all.
    pub in_flight: usize,
    /// Rows that one search for the next step of a sweep reads: some milliseconds.
    pub sweep_scan_rows: usize,
    /// Pages that one step of scrubbing the database reads: a few milliseconds.
    pub scrub_pages: u64,
    /// How a replica proves that it lives, where several share a store.
    pub replica: ReplicaTiming,
}

/// How a replica proves that it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaTiming {
    /// How often it does.
    pub beat: Duration,
    /// How long after its last proof it begins no attempt.
    pub fence: Duration,
    /// What is added to that time, and to the longest attempt, before others take over.
    pub grace: Duration,
    /// How long it holds a row in the store without a lease, before it frees the row: longer than any call takes.
    pub orphaned: Duration,
    /// How often it looks for what others have freed.
    pub rescan: Duration,
    /// What a look over all that it holds, and all that is free, may take and still be made with each proof.
    pub cheap_look: Duration,
}

impl Default for ReplicaTiming {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            beat: seconds(1),
            fence: seconds(5),
            grace: seconds(2),
            orphaned: seconds(6),
            rescan: seconds(1),
            cheap_look: Duration::from_millis(20),
        }
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            inbox_leases: 1024,
            lease_batch: 64,
            in_flight: 256,
            sweep_scan_rows: 20_000,
            scrub_pages: 1024,
            replica: ReplicaTiming::default(),
        }
    }
}

#[cfg(test)]
impl Tuning {
    /// With the shipped sizes, for tests whose time counts.
    pub(crate) fn patient() -> Self {
        Self { replica: ReplicaTiming::patient(), ..Self::default() }
    }

    /// So small that a test with a dozen events meets every bound.
    pub(crate) fn small() -> Self {
        Self {
            inbox_leases: 4,
            lease_batch: 6,
            in_flight: 4,
            sweep_scan_rows: 7,
            scrub_pages: 16,
            replica: ReplicaTiming::patient(),
        }
    }
}

#[cfg(test)]
impl ReplicaTiming {
    /// A test that blocks its thread for some seconds is not declared dead, and waits little for what another one frees.
    fn patient() -> Self {
        Self {
            fence: Duration::from_secs(120),
            orphaned: Duration::from_secs(2),
            rescan: Duration::from_millis(20),
            ..Self::default()
        }
    }
}
