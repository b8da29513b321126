//! wxrelay: one WeChat server URL, as many handlers as you want, and no event lost.
//!
//! The map, in the order of the floors; a module uses only modules of floors below its own:
//!
//! | floor | modules | |
//! |---|---|---|
//! | 5 | [`cli`] | one file per command |
//! | 4 | [`app`], [`config`] | the wiring, and what an operator may set |
//! | 3 | [`server`], [`admin`], [`push`], [`dispatcher`] | HTTP in; health, metrics, API; a push's way in; the way out |
//! | 3 | [`otlp`] | spans to a collector |
//! | 2 | [`queue`], [`deliver`], [`tail`] | the durable store; HTTP out; news for who watches |
//! | 1 | [`wechat`], [`event`], [`route`], [`backoff`], [`trace`] | pure: protocol, event, routing, schedule, trace |
//! | 0 | [`secret`], [`reading`], [`clock`], [`metrics`], [`telemetry`] | ground |
//!
//! To know the house, read [`push`], then [`dispatcher`], then [`app`].

pub mod admin;
pub mod app;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deliver;
pub mod dispatcher;
pub mod event;
pub mod metrics;
pub mod otlp;
pub mod push;
pub mod queue;
pub mod reading;
pub mod route;
pub mod secret;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod tail;
pub mod telemetry;
pub mod trace;
pub mod wechat;
