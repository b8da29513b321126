//! Catches signals from the first statement of `main` on, for `wxrelay serve`.
//!
//! The kernel ends a process at a signal that it has no handler for. tokio's handlers need a runtime, so with them alone
//! (the simple version) a SIGHUP or SIGTERM within the first 3 to 6 ms was fatal. These need nothing. What remains is the
//! time of the kernel and of the dynamic loader before `main`, in which no program can have a handler.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register;

/// Whether one of the signals that stop the relay came.
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Catches the signals, if the process was started to serve. Other commands end at a signal.
pub fn catch() {
    if std::env::args_os().nth(1).is_none_or(|command| command != "serve") {
        return;
    }
    // The configuration is read after this, so a request to read it again is fulfilled anyway.
    let ignored = Arc::<AtomicBool>::default();
    let stop = STOP.get_or_init(Arc::default);
    for (signal, flag) in [(SIGHUP, &ignored), (SIGTERM, stop), (SIGINT, stop)] {
        // Fails only for signals that cannot be caught.
        register(signal, Arc::clone(flag)).ok();
    }
}

/// Whether the relay was asked to stop before its own handlers were there.
pub(super) fn is_stop_requested() -> bool {
    // Pairs with the store in the signal handler, which the kernel runs on a thread of this process.
    STOP.get().is_some_and(|stop| stop.load(Ordering::SeqCst))
}
