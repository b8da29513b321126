//! wxrelay: one WeChat server URL, as many handlers as you want, and no event lost.
//!

pub mod backoff;
pub mod clock;
pub mod deliver;
pub mod event;
pub mod metrics;
pub mod queue;
pub mod route;
pub mod secret;
pub mod telemetry;
pub mod wechat;
