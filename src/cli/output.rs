//! Where commands print: stdout and stderr, with everything escaped that a terminal would obey.
//!
//! Every command prints through this file, whether a terminal reads it or a pipe: a pager or `tail -f` passes on what it
//! reads. A test of the sources (`tests/it/tidy.rs`) finds a command that does not. A text with line breaks of others
//! goes through [`escape::line`] or [`escape::block`] first, or is written by `write_line`.

use std::io::{self, IsTerminal as _};

use rustix::termios::tcgetwinsize;

use super::display::StyledLine;
use super::{BadConfig, remedy};
use crate::escape::{self, EscapingWriter};

/// What the command is run for, for people or scripts.
pub(super) fn stdout() -> EscapingWriter<io::Stdout> {
    EscapingWriter(io::stdout())
}

/// Progress and errors.
pub(super) fn stderr() -> EscapingWriter<io::Stderr> {
    EscapingWriter(io::stderr())
}

/// Whether people read stdout, and not a program.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// The columns to write for where people read stdout; 80 where their terminal has no size.
pub(super) fn terminal_width() -> Option<usize> {
    width_of(&io::stdout())
}

/// The same of stderr.
pub(super) fn stderr_width() -> Option<usize> {
    width_of(&io::stderr())
}

fn width_of(stream: &(impl io::IsTerminal + std::os::fd::AsFd)) -> Option<usize> {
    if !stream.is_terminal() {
        return None;
    }
    let columns = tcgetwinsize(stream).map_or(0, |size| usize::from(size.ws_col));
    Some(if columns == 0 { 80 } else { columns })
}

/// Prints lines to stdout: their texts are escaped, and the codes are ours.
pub(super) fn print_lines(lines: &[StyledLine], color: bool) -> io::Result<()> {
    use io::Write as _;
    let text: String = lines.iter().map(|line| line.encode(color) + "\n").collect();
    io::stdout().write_all(text.as_bytes())
}

/// Prints text that [`super::display`] has made.
pub(super) fn print_encoded(text: &str) -> io::Result<()> {
    use io::Write as _;
    io::stdout().write_all(format!("{text}\n").as_bytes())
}

/// Stdout for the exact bytes, where [`is_terminal`] is false, or where all of the text is ours.
pub(super) fn exact_stdout() -> io::StdoutLock<'static> {
    io::stdout().lock()
}

/// Prints why a command ends, and how to fix it.
pub fn print_error(error: &anyhow::Error) {
    use io::Write as _;
    let mut text = match error.downcast_ref::<BadConfig>() {
        // One error per line: tools that parse the stderr of `check` rely on it.
        Some(BadConfig(errors)) => {
            errors.iter().map(|error| escape::line(&error.to_string()).into_owned() + "\n").collect()
        }
        None => format!("wxrelay: {}\n", escape::block(&format!("{error:#}"), "  | ")),
    };
    if let Some(remedy) = remedy(error) {
        text += &format!("fix: {}\n", escape::line(remedy));
    }
    // Nothing is left to report to.
    stderr().write_all(text.as_bytes()).ok();
}
