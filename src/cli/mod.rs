//! The commands: one file or folder each, with its `Args` and its `run`.
//!
//! What a command prints for people or scripts goes to stdout; progress and errors go to stderr.

mod access;
mod api;
pub mod audit;
mod changes;
pub mod check;
pub mod checks;
pub mod completions;
mod confirmation;
mod console_paths;
#[cfg(feature = "postgres")]
mod database;
pub mod dead;
pub mod demo;
mod description;
mod display;
pub mod doctor;
pub mod early_signals;
mod event_filter;
pub mod events;
mod fixable;
mod forget;
mod groups;
pub mod healthcheck;
mod help;
pub mod init;
pub mod keygen;
pub mod man;
pub mod online;
mod output;
pub mod reload;
mod replay;
pub mod replicas;
mod samples;
pub mod serve;
mod service;
mod shares;
pub mod simulate;
pub mod sink;
mod slow_replies;
pub mod status;
mod steps;
pub mod store;
mod tail;
mod taken_addresses;
pub mod targets;
pub mod top;
pub mod why;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

pub use self::fixable::{FixableError, UsageError, exit_code, remedy};
pub use self::output::print_error;
use crate::config::{self, Config, ConfigError, StoreAccess};

/// How long the end of the process waits for threads that block, such as one that resolves a name.
const THREAD_GRACE: Duration = Duration::from_millis(50);

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
    /// Run the relay until SIGTERM, which drains it; SIGHUP reloads
    Serve(serve::Args),
    /// Let the running relay read its configuration again
    ///
    /// Prints what changed, or every error; then the old configuration stays in use.
    Reload(access::ReportArgs),
    /// Print every error of the configuration, or the routing table
    ///
    /// Loads what `serve` loads at its start. With --online it probes the targets, too.
    Check(check::Args),
    /// Check DNS, TLS, clock, keys, disk and targets; print the fixes
    Doctor(doctor::Args),
    /// Show a relay at work with a simulated WeChat, step by step
    Demo(demo::Args),
    /// Write a first configuration; print what WeChat's console needs
    Init(init::Args),
    /// Act as WeChat: send pushes, and judge the answers
    Simulate(simulate::Args),
    /// Act as a handler: print deliveries; reply, fail or stall
    Sink(sink::Args),
    /// List, show, follow and replay events; forget a user
    Events(events::Args),
    /// Show the running relay on one screen
    ///
    /// Its configuration, readiness, accounts, targets, store and warnings.
    Status(status::Args),
    /// List what needs a hand, and what to do about it
    Checks(checks::Args),
    /// List the replicas that share a store in PostgreSQL
    Replicas(access::ReportArgs),
    /// Watch accounts, targets, rates and trouble on a live screen
    Top(top::Args),
    /// Find the event that an alarm of WeChat is about
    Why(why::Args),
    /// List, pause and resume targets; drop or redirect what waits
    Targets(targets::Args),
    /// List, retry or drop dead letters
    Dead(dead::Args),
    /// Count the deliveries in the store: is every one accounted for?
    Audit(audit::Args),
    /// Salvage a damaged store; copy a store; print its SQL
    Store(store::Args),
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
    /// Runs the command to its end.
    ///
    /// Not async: the crate that awaited it would contain every command's code a second time, 0.6 MB of the binary.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let code = runtime.block_on(self.command.run());
        // Dropping the runtime would wait for every blocking call: the system's resolver may take half a minute, and a
        // disk that stands still takes for ever.
        runtime.shutdown_timeout(THREAD_GRACE);
        code
    }
}

impl Command {
    async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Serve(args) => serve::run(args).await,
            Self::Reload(args) => reload::run(args).await,
            Self::Status(args) => status::run(args).await,
            Self::Checks(args) => checks::run(args).await,
            Self::Replicas(args) => replicas::run(args).await,
            Self::Check(args) => check::run(args).await,
            Self::Doctor(args) => doctor::run(args).await,
            Self::Demo(args) => demo::run(args).await,
            Self::Events(args) => events::run(args).await,
            Self::Top(args) => top::run(args).await,
            Self::Why(args) => why::run(args).await,
            Self::Targets(args) => targets::run(args).await,
            Self::Dead(args) => dead::run(args).await,
            Self::Audit(args) => audit::run(&args).await,
            Self::Store(args) => store::run(args).await,
            Self::Healthcheck(args) => healthcheck::run(args).await,
            Self::Init(args) => init::run(args).await,
            Self::Simulate(args) => simulate::run(args).await,
            Self::Sink(args) => sink::run(args).await,
            Self::Keygen(args) => keygen::run(args).await,
            Self::Completions(args) => completions::run(args).await,
            Self::Man(args) => man::run(&args),
        }
    }
}

/// Printed before a command continues although the configuration has errors.
const ONLY_QUEUE: &str = "warning: the configuration has errors, see `wxrelay check`; only [queue] is used";

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

    /// Loads what a command needs that works on the store: `[queue]`, whatever is wrong elsewhere.
    pub(crate) fn load_store(&self) -> anyhow::Result<StoreAccess> {
        let errors = match self.load() {
            Ok(config) => return Ok(config.into()),
            Err(errors) => errors,
        };
        match self.lenient_store() {
            Some(store) => {
                output::stderr().write_line(ONLY_QUEUE)?;
                Ok(store)
            }
            None => Err(errors.into()),
        }
    }

    /// `[queue]` alone; without such a table its default folder, if that is there.
    fn lenient_store(&self) -> Option<StoreAccess> {
        let store = config::store_access(self.file().as_deref(), config::environment()).ok()?;
        let is_there = || store.queue.folder().is_some_and(|folder| folder.exists());
        (store.is_named || is_there()).then_some(store)
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
