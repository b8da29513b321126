//! The program: arguments to a command, a command to an exit code.

use std::io;
use std::process::ExitCode;

use mimalloc::MiMalloc;
use wxrelay::cli::{Cli, early_signals, exit_code, print_error};

/// mimalloc, as much of a push's memory is freed by another thread: a ninth less processor time per push than with the
/// simple version, glibc's allocator, for 80 KB of binary.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // First, as a signal ends the process until it is caught.
    early_signals::catch();
    let cli = Cli::from_arguments();
    // The default hook prints the panic's message, which may quote a push.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "an unknown location".to_owned(), ToString::to_string);
        tracing::error!(place, "internal error, please report it");
    }));
    // All rustls configurations of the process share this provider. Fails only if one is installed already.
    rustls::crypto::ring::default_provider().install_default().ok();
    match cli.run() {
        Ok(code) => code,
        // `wxrelay ... | head` closes the pipe early, which is no error.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            exit_code(&error).into()
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
