//! The terminal while `wxrelay top` runs: single keys without echo, the alternate screen, no cursor.
//!
//! Dropping it restores the terminal too, so that an error or a panic leaves it usable.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};
use std::thread;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use crate::cli::display::{Settings, StyledLine};

/// The size to assume if the terminal does not report its own.
const DEFAULT_SIZE: (usize, usize) = (80, 24);

pub(super) struct Terminal {
    /// The settings to restore; `None` once restored.
    before: Option<Termios>,
    keys: mpsc::Receiver<u8>,
}

impl Terminal {
    /// Sets the terminal up; `None` if stdin or stdout is no terminal.
    pub(super) fn open() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut settings = before.clone();
        // Signals stay enabled: Ctrl-C ends the command and Ctrl-Z suspends it.
        settings.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Now, &settings)?;
        let (pressed, keys) = mpsc::channel(8);
        // A thread of its own: a read from a terminal cannot be cancelled, and the process must not wait for it.
        thread::spawn(move || {
            for key in io::stdin().lock().bytes().map_while(Result::ok) {
                if pressed.blocking_send(key).is_err() {
                    return;
                }
            }
        });
        let terminal = Self { before: Some(before), keys };
        // The alternate screen, no cursor.
        print("\x1b[?1049h\x1b[?25l")?;
        Ok(Some(terminal))
    }

    /// The next key; `None` once the terminal is gone.
    pub(super) async fn key(&mut self) -> Option<u8> {
        self.keys.recv().await
    }

    /// Columns and lines.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            Ok(_) | Err(_) => DEFAULT_SIZE,
        }
    }

    /// Shows these lines and nothing else. Overwriting lines and clearing the rest avoids flicker.
    pub(super) fn draw(&self, lines: &[StyledLine], settings: &Settings, height: usize) -> io::Result<()> {
        let mut screen = "\x1b[H".to_owned();
        for (number, line) in lines.iter().take(height).enumerate() {
            let shown = line.clone().truncate(settings.width.unwrap_or(usize::MAX)).encode(settings.color);
            let next = if number == 0 { "" } else { "\r\n" };
            // Writing to a String cannot fail.
            write!(screen, "{next}{shown}\x1b[K").ok();
        }
        print(&(screen + "\x1b[J"))
    }

    /// Restores the settings and the screen.
    pub(super) fn restore(&mut self) {
        if let Some(before) = self.before.take() {
            // A terminal that is gone needs no restoring.
            print("\x1b[?25h\x1b[?1049l").ok();
            tcsetattr(io::stdin(), OptionalActions::Now, &before).ok();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
