//! Lines that a person enters while the demo runs.

use std::io::{self, BufRead as _};
use std::thread;

use tokio::sync::mpsc;

pub(super) struct Keyboard(mpsc::Receiver<String>);

impl Keyboard {
    pub(super) fn new() -> Self {
        let (entered, lines) = mpsc::channel(8);
        // A thread of its own: a read from a terminal cannot be cancelled, and the process must not wait for it.
        thread::spawn(move || {
            for line in io::stdin().lock().lines().map_while(Result::ok) {
                if entered.blocking_send(line.trim().to_lowercase()).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }

    /// The next line; `None` once the terminal is gone.
    pub(super) async fn line(&mut self) -> Option<String> {
        self.0.recv().await
    }
}
