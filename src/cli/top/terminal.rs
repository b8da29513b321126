//! The terminal while `wxrelay top` has it: keys one by one and unseen, a screen of its own, no cursor.
//!
//! Given back when dropped too, so that an error or a panic leaves no spoilt terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};
use std::thread;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// What is assumed where the terminal does not say.
const SIZE: (usize, usize) = (80, 24);

pub(super) struct Terminal {
    /// As it was; `None` once it is so again.
    before: Option<Termios>,
    keys: mpsc::Receiver<u8>,
}

impl Terminal {
    /// Takes it; `None` if there is none.
    pub(super) fn take() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut settings = before.clone();
        // Signals stay: Ctrl-C ends it and Ctrl-Z stops it as ever.
        settings.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Now, &settings)?;
        let (pressed, keys) = mpsc::channel(8);
        // A thread of its own: a read from a terminal cannot be given up, and the process must not wait for it.
        thread::spawn(move || {
            for key in io::stdin().lock().bytes().map_while(Result::ok) {
                if pressed.blocking_send(key).is_err() {
                    return;
                }
            }
        });
        let terminal = Self { before: Some(before), keys };
        // The other screen, no cursor.
        say("\x1b[?1049h\x1b[?25l")?;
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
            Ok(_) | Err(_) => SIZE,
        }
    }

    /// Shows these lines and nothing else. Each is written over the one before and the rest is cleared: no flicker.
    pub(super) fn draw(&self, lines: &[String], width: usize, height: usize) -> io::Result<()> {
        let mut screen = "\x1b[H".to_owned();
        for (number, line) in lines.iter().take(height).enumerate() {
            // The last column stays free: a terminal waits there, and would clear it with what follows.
            let shown: String = line.chars().filter(|c| !c.is_control()).take(width.saturating_sub(1)).collect();
            let next = if number == 0 { "" } else { "\r\n" };
            // Writing to a String cannot fail.
            write!(screen, "{next}{shown}\x1b[K").ok();
        }
        say(&(screen + "\x1b[J"))
    }

    /// Gives it back as it was.
    pub(super) fn give_back(&mut self) {
        if let Some(before) = self.before.take() {
            // A terminal that is gone needs nothing any more.
            say("\x1b[?25h\x1b[?1049l").ok();
            tcsetattr(io::stdin(), OptionalActions::Now, &before).ok();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
