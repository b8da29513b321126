//! The commands: one file each, with its `Args` and its `run`.
//!
//! What a command prints for people or scripts goes to stdout; progress and errors go to stderr.

mod alarm;
mod api;
pub mod audit;
pub mod check;
pub mod completions;
pub mod dead;
pub mod demo;
mod description;
pub mod doctor;
mod event_filter;
pub mod events;
mod fixable;
mod forget;
pub mod healthcheck;
pub mod init;
pub mod keygen;
pub mod man;
pub mod online;
mod replay;
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

pub use self::fixable::{FixableError, remedy};
use crate::config::{self, Config, ConfigError};

/// All errors of the configuration, one per line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct BadConfig(Vec<ConfigError>);

impl BadConfig {
    /// `EX_CONFIG` of sysexits.h.
    pub const EXIT_CODE: u8 = 78;
}

/// One WeChat server URL, as many handlers as you want, and no event lost.
#[derive(Parser)]
#[command(name = "wxrelay", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Run the relay: SIGHUP reloads the configuration, SIGTERM drains and stops
    Serve(serve::Args),
    /// Print all errors of the configuration at once, or the routing table it makes; --online: are the targets there?
    Check(check::Args),
    /// Look at all between WeChat and the targets: DNS, port, TLS, clock, keys, disk, targets; each line with what to do
    Doctor(doctor::Args),
    /// Run the relay with stand-ins for WeChat, an identity provider and handlers, and tell the story
    Demo(demo::Args),
    /// Write a first config with fresh token and key, and say what to paste into WeChat's console
    Init(init::Args),
    /// Act as WeChat: send verifications and pushes, and judge the answers as WeChat would
    Simulate(simulate::Args),
    /// Act as a handler: verify and print deliveries; reply, fail or stall on request
    Sink(sink::Args),
    /// Find events, tell all about one, follow what happens, deliver them again, forget a user
    Events(events::Args),
    /// Watch the relay on a live screen: accounts, targets, rates, what waits, what is dead
    Top(top::Args),
    /// Find the event that WeChat's alarm is about, by its line `[OpenID=..][Stamp=..][Event=..]`
    Why(why::Args),
    /// List, pause and resume targets; drop or redirect what waits for one
    Targets(targets::Args),
    /// List, retry or drop dead letters
    Dead(dead::Args),
    /// Count the ledger: is every delivery accounted for?
    Audit(audit::Args),
    /// Exit with 0 when the relay is ready
    Healthcheck(healthcheck::Args),
    /// Print a fresh token, EncodingAESKey, webhook secret and key for the store
    Keygen(keygen::Args),
    /// Print what a shell needs to complete these commands
    Completions(completions::Args),
    /// Print the manual page, or write one for each command
    Man(man::Args),
}

impl Cli {
    /// Runs the command to its end.
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

/// Which configuration.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigArgs {
    /// The configuration [default: $WXRELAY_CONFIG, ./config.toml, /etc/wxrelay/config.toml]
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// Loads it.
    pub fn load(&self) -> Result<Config, BadConfig> {
        let named = std::env::var("WXRELAY_CONFIG").ok();
        let file = config::locate(self.config.as_deref(), named.as_deref());
        config::load(file.as_deref(), config::environment(), &[]).map_err(BadConfig)
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
