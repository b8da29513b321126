//! Sizes that bound the work done at once. Tests pass small ones, to reach the bounds with few events.

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
}

impl Default for Tuning {
    fn default() -> Self {
        Self { inbox_leases: 1024, lease_batch: 64, in_flight: 256, sweep_scan_rows: 20_000, scrub_pages: 1024 }
    }
}

#[cfg(test)]
impl Tuning {
    /// So small that a test with a dozen events meets every bound.
    pub(crate) fn small() -> Self {
        Self { inbox_leases: 4, lease_batch: 6, in_flight: 4, sweep_scan_rows: 7, scrub_pages: 16 }
    }
}
