//! The addresses of a configuration at which another program listens. Those of the relay that runs with it are no error:
//! `check` is run beside it, before a reload or a restart.

use http::Method;
use serde_json::Value;

use super::api::Api;
use crate::app::store_name;
use crate::config::Config;
use crate::queue::survey;
use crate::server::{self, BindError};

/// What is known of the relay that runs with a configuration.
enum RunningRelay {
    No,
    /// It holds the store, and does not answer.
    Silent,
    /// The addresses at which it accepts pushes.
    At(Vec<String>),
}

/// The errors that a start would have, as other programs hold its addresses.
pub(super) async fn find(config: &Config) -> Vec<BindError> {
    let mut taken = Vec::new();
    for listen in config.server.listen.iter().chain([&config.admin.listen]) {
        if let Err(error) = server::check_unused(listen).await {
            taken.push((listen, error));
        }
    }
    if taken.is_empty() {
        return Vec::new();
    }
    let is_foreign: Box<dyn Fn(&server::Listen) -> bool> = match running_relay(config).await {
        RunningRelay::No => Box::new(|_| true),
        RunningRelay::Silent => Box::new(|_| false),
        // It answered at admin.listen.
        RunningRelay::At(addresses) => {
            Box::new(move |listen| *listen != config.admin.listen && !addresses.contains(&listen.to_string()))
        }
    };
    taken.into_iter().filter(|(listen, _)| is_foreign(listen)).map(|(_, error)| error).collect()
}

async fn running_relay(config: &Config) -> RunningRelay {
    let holds = config.queue.folder().map(|folder| folder.is_dir() && survey(folder).holder.is_some());
    if holds == Some(false) {
        return RunningRelay::No;
    }
    let answer = match Api::configured((&config.admin).into()) {
        Ok(api) => api.call(Method::GET, "/api/status", None).await.ok(),
        Err(_) => None,
    };
    let status = answer.filter(|(code, _)| code.is_success()).map(|(_, status)| status);
    match (status, holds) {
        (Some(status), Some(_)) => RunningRelay::At(addresses(&status)),
        // With PostgreSQL nothing but its name shows that it is the same store.
        (Some(status), None) if status["store"] == store_name(&config.queue.engine) => {
            RunningRelay::At(addresses(&status))
        }
        (_, None) => RunningRelay::No,
        (None, Some(_)) => RunningRelay::Silent,
    }
}

fn addresses(status: &Value) -> Vec<String> {
    status["listen"].as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}
