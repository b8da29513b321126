//! `wxrelay healthcheck`: readiness for containers, whose image has no curl.

use std::process::ExitCode;

use http::Method;

use super::access::RelayArgs;
use super::output;

/// `wxrelay healthcheck`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    relay: RelayArgs,
}

/// Exit code 0 when the relay is ready.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (status, answer) = args.relay.api()?.call(Method::GET, "/readyz", None).await?;
    if status.is_success() {
        return Ok(ExitCode::SUCCESS);
    }
    output::stderr().write_line(&format!("not ready: {answer}"))?;
    Ok(ExitCode::FAILURE)
}
