//! `wxrelay store`: what concerns the store as a whole.
//!
//! - `copy.rs`: copies a store to the other engine
//! - `salvage.rs`: reads back a damaged store of files
//! - `sql.rs`: prints what creates the tables in PostgreSQL

#[cfg(feature = "postgres")]
mod copy;
mod salvage;
#[cfg(feature = "postgres")]
mod sql;

use std::process::ExitCode;

use super::ConfigArgs;

/// `wxrelay store`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Read back what can be read of a damaged store that was moved aside; exit code 3 if something cannot be read
    Salvage(salvage::Args),
    /// Copy the store to PostgreSQL or back, with the relay stopped; exit code 1 if the counts differ at the end
    #[cfg(feature = "postgres")]
    Copy(copy::Args),
    /// Print the SQL that creates the tables in PostgreSQL, for a role that may create them
    #[cfg(feature = "postgres")]
    Sql(sql::Args),
}

/// Runs the action.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Salvage(action) => salvage::run(&args.config, action).await,
        #[cfg(feature = "postgres")]
        Action::Copy(action) => copy::run(&args.config, action).await,
        #[cfg(feature = "postgres")]
        Action::Sql(action) => sql::run(&args.config, action),
    }
}
