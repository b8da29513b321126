//! What the queue knows about the clock: whether it is believed, and how far ahead a due time can be.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::ClockEvidence;
use crate::queue::Queue;

impl Queue {
    /// What is known about the wall clock: while it is not believed, nothing is deleted by age.
    pub fn clock(&self) -> &ClockEvidence {
        match self {
            Self::Embedded(engine) => engine.clock(),
        }
    }

    /// Sets the longest wait that the retries of a target have: a delivery that is due later was scheduled by a clock
    /// that has been set back since.
    pub fn bound_waits(&self, target: &Arc<str>, longest: Duration) {
        match self {
            Self::Embedded(engine) => engine.bound_waits(target, longest),
        }
    }
}
