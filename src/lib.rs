//! wxrelay: one WeChat server URL, as many handlers as you want, and no event lost.
//!

pub mod admin;
pub mod app;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod deliver;
pub mod dispatcher;
pub mod event;
pub mod metrics;
pub mod push;
pub mod queue;
pub mod route;
pub mod secret;
pub mod server;
pub mod telemetry;
pub mod wechat;
