//! wxrelay: one WeChat server URL, any number of handlers, and no event lost.
//!
//! The modules by layer. A module uses only modules of lower layers:
//!
//! | layer | modules | |
//! |---|---|---|
//! | 5 | [`cli`] | one file per command |
//! | 4 | [`app`], [`config`], [`health`] | the wiring, the configuration, and the watch over running parts |
//! | 3 | [`server`], [`admin`], [`push`], [`dispatcher`] | HTTP in; health, metrics, API; the push pipeline; delivery |
//! | 3 | [`otlp`], [`login`] | spans to a collector; login callbacks and verification files |
//! | 2 | [`queue`], [`deliver`], [`tail`] | the durable store; HTTP out; activity for watchers |
//! | 1 | [`wechat`], [`event`], [`route`], [`backoff`], [`host`], [`trace`], [`trust`], [`alarm`] | pure: protocol, event, routing, schedule, trace, certificates, alarms |
//! | 0 | [`secret`], [`escape`], [`bounded_file`], [`certificate`], [`clock`], [`metrics`], [`telemetry`], [`tuning`] | foundation |
//!
//! To learn the structure, read [`push`], then [`dispatcher`], then [`app`].

pub mod admin;
pub mod alarm;
pub mod app;
pub mod backoff;
pub mod bounded_file;
pub mod certificate;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deliver;
pub mod dispatcher;
pub mod escape;
pub mod event;
pub mod health;
pub mod host;
pub mod login;
pub mod metrics;
pub mod ordered;
pub mod otlp;
pub mod push;
pub mod queue;
pub mod route;
pub mod secret;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod tail;
pub mod telemetry;
pub mod trace;
pub mod trust;
pub mod tuning;
pub mod wechat;
