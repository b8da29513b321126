//! `wxrelay store sql`: prints what creates the tables in PostgreSQL. Nothing is connected to.

use std::io::Write as _;
use std::process::ExitCode;

use crate::cli::fixable::fixable;
use crate::cli::{ConfigArgs, output};
use crate::queue::Engine;
use crate::queue::postgres::schema;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Let this role own the tables [default: the user in queue.url]
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
}

/// Prints the script for the schema of the configuration.
pub(super) fn run(config: &ConfigArgs, args: Args) -> anyhow::Result<ExitCode> {
    let config = config.load_store()?;
    let Engine::Postgres(settings) = &config.queue.engine else {
        let problem = "the store is not in PostgreSQL: queue.type is \"embedded\"";
        return Err(fixable(problem, "name a configuration with queue.type = \"postgres\" by -c FILE").into());
    };
    let role = args.role.unwrap_or_else(|| settings.server.user.clone());
    output::stdout().write_all(schema::script(&settings.schema, &role).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
