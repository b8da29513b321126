//! wxrelay: one WeChat server URL, as many handlers as you want, and no event lost.
//!

pub mod clock;
pub mod metrics;
pub mod secret;
pub mod telemetry;
