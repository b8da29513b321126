//! A table: headers, columns of the width of their contents, and a total width that fits the terminal.
//!
//! Our own lines on unicode-width (9 KB) and no library of tables: those break a long cell into several lines, where an
//! operator looks for one line per thing.

use super::Settings;
use super::line::{Color, StyledLine};
use crate::cli::output;

/// The blanks between two columns.
const SPACE: usize = 2;

/// A column.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Column {
    title: &'static str,
    is_right: bool,
    /// The width to which it may shrink on a narrow terminal.
    least: usize,
}

impl Column {
    /// Texts, shown in full.
    pub(in crate::cli) const fn text(title: &'static str) -> Self {
        Self { title, is_right: false, least: usize::MAX }
    }

    /// Texts, elided down to that many columns where the terminal is too narrow.
    pub(in crate::cli) const fn elided(title: &'static str, least: usize) -> Self {
        Self { title, is_right: false, least }
    }

    /// Numbers, aligned at the right.
    pub(in crate::cli) const fn number(title: &'static str) -> Self {
        Self { title, is_right: true, least: usize::MAX }
    }
}

/// Rows below titles.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Table<'c> {
    columns: &'c [Column],
    rows: Vec<Vec<StyledLine>>,
}

impl<'c> Table<'c> {
    pub(in crate::cli) fn new(columns: &'c [Column]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row: one cell per column.
    pub(in crate::cli) fn push(&mut self, cells: Vec<StyledLine>) {
        self.rows.push(cells);
    }

    /// The lines, none wider than `width`.
    pub(in crate::cli) fn lines(&self, width: Option<usize>) -> Vec<StyledLine> {
        let widths = self.widths(width.unwrap_or(usize::MAX));
        let titles = self.columns.iter().map(|column| StyledLine::new(column.title, Color::Bold)).collect();
        let line = |cells: &Vec<StyledLine>| {
            let mut line = StyledLine::default();
            for ((cell, column), width) in cells.iter().zip(self.columns).zip(&widths) {
                let cell = cell.clone().elide(*width);
                let blanks = width - cell.width();
                let end = line.width() + if line.is_empty() { 0 } else { SPACE };
                line.pad_to(end + if column.is_right { blanks } else { 0 });
                line.append(cell);
                line.pad_to(end + width);
            }
            line.truncate(width.unwrap_or(usize::MAX))
        };
        [&titles].into_iter().chain(&self.rows).map(line).collect()
    }

    /// The width of each column: that of its widest cell, unless the sum is more than `total`; then the widest of those
    /// that may shrink do so.
    fn widths(&self, total: usize) -> Vec<usize> {
        let widest = |index: usize| self.rows.iter().filter_map(|row| Some(row.get(index)?.width())).max().unwrap_or(0);
        let titled = |(index, column): (usize, &Column)| widest(index).max(column.title.len());
        let mut widths: Vec<usize> = self.columns.iter().enumerate().map(titled).collect();
        let spaces = SPACE * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + spaces > total {
            let shrinkable = widths.iter_mut().zip(self.columns).filter(|(width, column)| **width > column.least);
            let Some((width, _)) = shrinkable.max_by_key(|(width, _)| **width) else { break };
            *width -= 1;
        }
        widths
    }

    /// Prints it to stdout.
    pub(in crate::cli) fn print(&self, settings: &Settings) -> std::io::Result<()> {
        output::print_lines(&self.lines(settings.width), settings.color)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] =
        [Column::text("ID"), Column::elided("NAME", 5), Column::elided("WHY", 4), Column::number("N")];

    fn shown(rows: &[[&str; 4]], width: Option<usize>) -> Vec<String> {
        let mut table = Table::new(&COLUMNS);
        rows.iter().for_each(|row| table.push(row.iter().map(|cell| StyledLine::from(*cell)).collect()));
        table.lines(width).iter().map(|line| line.encode(false)).collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a1", "crm", "订单", "5"], ["b22", "订单系统", "-", "1200"]];
        let lines = ["ID   NAME      WHY      N", "a1   crm       订单     5", "b22  订单系统  -     1200"];
        assert_eq!(shown(&rows, None), lines);
        assert_eq!(shown(&rows, Some(25)), lines);
        assert_eq!(shown(&[], None), ["ID  NAME  WHY  N"]);
    }

    #[test]
    fn the_widest_columns_shrink_first_and_no_line_is_too_wide() {
        let rows = [["a1", "a-long-name-of-a-target", "no answer within ten seconds", "5"]];
        assert_eq!(shown(&rows, Some(40))[1], "a1  a-long-..-target  no answ..econds  5");
        for width in 0..60 {
            for line in shown(&rows, Some(width)) {
                assert!(super::super::line::width(&line) <= width, "{width}: {line}");
            }
        }
    }
}
