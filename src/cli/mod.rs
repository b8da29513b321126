//! The commands: one file or folder each, with its `Args` and its `run`.
//!
//! What a command prints for people or scripts goes to stdout; progress and errors go to stderr.

mod access;
mod alarm;
mod api;
pub mod audit;
pub mod check;
pub mod completions;
mod console_paths;
pub mod dead;
pub mod demo;
mod description;
pub mod doctor;
pub mod early_signals;
mod event_filter;
pub mod events;
mod fixable;
mod forget;
mod groups;
pub mod healthcheck;
pub mod init;
pub mod keygen;
pub mod man;
pub mod online;
mod output;
mod replay;
pub mod salvage;
mod samples;
pub mod serve;
mod service;
pub mod simulate;
pub mod sink;
mod steps;
mod store;
mod tail;
mod target_problem;
pub mod targets;
pub mod top;
pub mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use self::fixable::{FixableError, exit_code, remedy};
pub use self::output::print_error;
use crate::config::{self, Config, ConfigError};

/// All errors of the configuration, one per line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct BadConfig(Vec<ConfigError>);

impl BadConfig {
    /// `EX_CONFIG` of sysexits.h.
    pub const EXIT_CODE: u8 = 78;
}

/// Relay one WeChat server URL to any number of handlers, and lose no event
#[derive(Parser)]
#[command(name = "wxrelay", version, help_template = groups::help_template())]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the relay; SIGHUP reloads the configuration, SIGTERM drains and stops
    Serve(serve::Args),
    /// Check the configuration: print every error, or the routing table; --online probes the targets
    Check(check::Args),
    /// Check DNS, port, TLS, clock, keys, disk and targets, and print how to fix what fails
    Doctor(doctor::Args),
    /// Run a relay with a simulated WeChat, identity provider and handlers, step by step
    Demo(demo::Args),
    /// Write a first configuration with a fresh token and key, and print what to enter in WeChat's console
    Init(init::Args),
    /// Act as WeChat: send verifications and pushes, and judge the answers
    Simulate(simulate::Args),
    /// Act as a handler: verify and print deliveries; reply, fail or stall on request
    Sink(sink::Args),
    /// List, show, follow and replay events; forget a user
    Events(events::Args),
    /// Watch accounts, targets, rates, backlogs and dead letters on a live screen
    Top(top::Args),
    /// Find the event that an alarm of WeChat is about, such as `[OpenID=..][Stamp=..][Event=..]`
    Why(why::Args),
    /// List, pause and resume targets; drop or redirect their pending deliveries
    Targets(targets::Args),
    /// List, retry or drop dead letters
    Dead(dead::Args),
    /// Count the deliveries in the store: is every one accounted for?
    Audit(audit::Args),
    /// Read back a damaged store that was moved aside
    Store(salvage::Args),
    /// Exit with 0 if the relay is ready
    Healthcheck(healthcheck::Args),
    /// Print a fresh token, EncodingAESKey, webhook secret and store key
    Keygen(keygen::Args),
    /// Print completions for a shell
    Completions(completions::Args),
    /// Print the manual page, or write one for each command
    Man(man::Args),
}

impl Cli {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(args) => serve::run(args).await,
            Command::Check(args) => check::run(args).await,
            Command::Doctor(args) => doctor::run(args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Events(args) => events::run(args).await,
            Command::Top(args) => top::run(args).await,
            Command::Why(args) => why::run(args).await,
            Command::Targets(args) => targets::run(args).await,
            Command::Dead(args) => dead::run(args).await,
            Command::Audit(args) => audit::run(&args),
            Command::Store(args) => salvage::run(args).await,
            Command::Healthcheck(args) => healthcheck::run(args).await,
            Command::Init(args) => init::run(args).await,
            Command::Simulate(args) => simulate::run(args).await,
            Command::Sink(args) => sink::run(args).await,
            Command::Keygen(args) => keygen::run(args).await,
            Command::Completions(args) => completions::run(&args),
            Command::Man(args) => man::run(&args),
        }
    }
}

/// The configuration file.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigArgs {
    /// Read this configuration file [default: $WXRELAY_CONFIG, ./config.toml, /etc/wxrelay/config.toml]
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// Loads the configuration.
    pub fn load(&self) -> Result<Config, BadConfig> {
        config::load(self.file().as_deref(), config::environment(), &[]).map_err(BadConfig)
    }

    /// The file to read, if there is one.
    fn file(&self) -> Option<PathBuf> {
        let named = std::env::var("WXRELAY_CONFIG").ok();
        config::locate(self.config.as_deref(), named.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_kind_of_push_can_be_simulated() {
        let kinds =
            ["verify", "text hi", "subscribe --scene s", "scan", "unsubscribe", "click K", "view U", "raw F", "storm"];
        for kind in kinds {
            let flags = "--to http://h/p --token T --key K --app-id A --mode secure --json";
            for line in [format!("wxrelay simulate {flags} {kind}"), format!("wxrelay simulate {kind} {flags}")] {
                assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
            }
        }
    }
}
