//! `wxrelay healthcheck`: readiness for containers, whose image has no curl.

use std::io::{self, Write};
use std::process::ExitCode;

use http::Method;

use super::ConfigArgs;
use super::api::Api;

/// `wxrelay healthcheck`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Exit code 0 when the relay is ready.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?;
    let (status, answer) = Api::of(&config)?.call(Method::GET, "/readyz", None).await?;
    if status.is_success() {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(io::stderr(), "not ready: {answer}")?;
    Ok(ExitCode::FAILURE)
}
