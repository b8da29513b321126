//! What the keys of `wxrelay top` change: the order of the targets, and the first one shown. Pure.

/// The order of the targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Down, paused, waiting long, with dead letters; then by rate.
    #[default]
    Trouble,
    Rate,
    Waiting,
    Oldest,
    Dead,
    Name,
}

impl Sort {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Trouble => "trouble",
            Self::Rate => "rate",
            Self::Waiting => "waiting",
            Self::Oldest => "oldest",
            Self::Dead => "dead",
            Self::Name => "name",
        }
    }
}

/// The keys, for the last line of a frame.
pub(super) const KEYS: &str = "sort: t trouble, r rate, w waiting, o oldest, d dead, n name  j k scroll  q end";

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Redraw,
    End,
    /// Not of a key, or not yet a whole one.
    None,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) sort: Sort,
    /// How many targets are above the first one shown.
    pub(super) scroll: usize,
    /// How many were shown last: the size of a page.
    pub(super) page: usize,
    /// The bytes of a key that sends several, such as an arrow.
    sequence: Vec<u8>,
}

impl View {
    /// Takes a byte from the terminal.
    pub(super) fn press(&mut self, byte: u8) -> Action {
        self.sequence.push(byte);
        let sequence = std::mem::take(&mut self.sequence);
        match &sequence[..] {
            // Ctrl-D (4) arrives as a key; Ctrl-C (3) only where the terminal makes no signal of it.
            b"q" | b"Q" | [3 | 4] => return Action::End,
            b"t" => self.sort_by(Sort::Trouble),
            b"r" => self.sort_by(Sort::Rate),
            b"w" => self.sort_by(Sort::Waiting),
            b"o" => self.sort_by(Sort::Oldest),
            b"d" => self.sort_by(Sort::Dead),
            b"n" => self.sort_by(Sort::Name),
            b"j" | b"\x1b[B" | b"\x1bOB" => self.scroll += 1,
            b"k" | b"\x1b[A" | b"\x1bOA" => self.scroll = self.scroll.saturating_sub(1),
            b" " | b"\x1b[6~" => self.scroll += self.page.max(1),
            b"b" | b"\x1b[5~" => self.scroll = self.scroll.saturating_sub(self.page.max(1)),
            b"g" | b"\x1b[H" => self.scroll = 0,
            b"G" | b"\x1b[F" => self.scroll = usize::MAX,
            b"\x1b" | b"\x1b[" | b"\x1bO" | [0x1b, b'[', b'0'..=b'9'] => {
                self.sequence = sequence;
                return Action::None;
            }
            _ => return Action::None,
        }
        Action::Redraw
    }

    fn sort_by(&mut self, sort: Sort) {
        (self.sort, self.scroll) = (sort, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_and_scroll() {
        let mut view = View { page: 8, ..View::default() };
        let mut press = |keys: &str| {
            let last = keys.bytes().map(|byte| view.press(byte)).last();
            (view.scroll, view.sort, last)
        };
        assert_eq!(press("j\x1b[B"), (2, Sort::Trouble, Some(Action::Redraw)));
        assert_eq!(press("\x1b[A"), (1, Sort::Trouble, Some(Action::Redraw)));
        assert_eq!(press("\x1b[6~ ").0, 17);
        assert_eq!(press("w"), (0, Sort::Waiting, Some(Action::Redraw)));
        assert_eq!(press("kx").2, Some(Action::None));
        assert_eq!(press("Gq").2, Some(Action::End));
        assert_eq!(press("\x1b[").2, Some(Action::None), "the rest is to come");
    }
}
