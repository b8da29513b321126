//! What the queue knows about the clock: whether it is believed, and how far ahead a due time can be.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::ClockEvidence;
use crate::queue::Queue;
use crate::queue::on_engine;

impl Queue {
    /// What is known about the wall clock: while it is not believed, nothing is deleted by age.
    pub fn clock(&self) -> &ClockEvidence {
        on_engine!(self, engine => engine.clock())
    }

    /// Sets the longest that an attempt at a target takes: where several processes share a store, the deliveries of one
    /// that is silent are attempted by others after that.
    pub fn bound_attempts(&self, target: &Arc<str>, longest: Duration) {
        on_engine!(self, engine => engine.bound_attempts(target, longest))
    }

    /// Sets the longest wait that the retries of a target have: a delivery that is due later was scheduled by a clock
    /// that has been set back since.
    pub fn bound_waits(&self, target: &Arc<str>, longest: Duration) {
        on_engine!(self, engine => engine.bound_waits(target, longest))
    }
}
