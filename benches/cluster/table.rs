//! The printed table: medians by engine, beside the goals.

use super::Loaded;
use super::support::figures::{Latency, ends, median, millis};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Sqlite,
    Postgres,
    Standby,
}

/// How far a median may miss its goal.
const TOLERANCE: f64 = 0.2;

#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    /// In milliseconds.
    flush: f64,
}

struct Row {
    name: String,
    /// The values of each column, a round each.
    values: [Vec<f64>; 3],
}

#[derive(Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Table {
    pub(crate) fn new(flush: f64) -> Self {
        Self { flush, ..Self::default() }
    }

    pub(crate) fn note(&mut self, column: Column, name: &str, value: f64) {
        println!("  {column:?}: {}: {value:.2}", name.trim_start());
        let place = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row { name: name.to_owned(), values: Default::default() });
            self.rows.len() - 1
        });
        self.rows[place].values[column as usize].push(value);
    }

    /// The rows of a phase with full load.
    pub(crate) fn loaded(&mut self, column: Column, name: &str, loaded: &Loaded) {
        self.note(column, &format!("{name}, pushes a second"), loaded.rate());
        self.note(column, &format!("  {name}: p50, ms"), millis(loaded.answers.p50));
        self.note(column, &format!("  {name}: p99, ms"), millis(loaded.answers.p99));
        let by = ["relay", "PostgreSQL", "sender and targets"];
        for (who, time) in by.into_iter().zip(loaded.processor) {
            let micros = time.as_secs_f64() * 1e6 / loaded.answers.count.max(1) as f64;
            self.note(column, &format!("  {name}: {who}, us of processor a push"), micros);
        }
    }

    pub(crate) fn paced(&mut self, column: Column, answers: &Latency) {
        self.note(column, "at 1,000 a second: p50, ms", millis(answers.p50));
        self.note(column, "at 1,000 a second: p99, ms", millis(answers.p99));
    }

    fn goal(&self, column: Column, name: &str) -> Option<Goal> {
        match (column, name) {
            (Column::Postgres, "stored, pushes a second" | "drain, deliveries a second") => Some(Goal::AtLeast(8000.0)),
            (Column::Postgres, "three replicas: stored, pushes a second") => Some(Goal::AtLeast(10_000.0)),
            (Column::Standby, "stored, pushes a second") => Some(Goal::AtLeast(5000.0)),
            (Column::Postgres, "at 1,000 a second: p99, ms") => Some(Goal::AtMost(10.0 + 3.0 * self.flush)),
            (Column::Postgres, "  of the rate before, per cent") => Some(Goal::AtLeast(90.0)),
            (Column::Postgres, "idle, statements a second") => Some(Goal::AtMost(6.0)),
            (_, "not answered 200") => Some(Goal::AtMost(0.0)),
            _ => None,
        }
    }

    /// Prints it; whether every goal is met, within the tolerance.
    pub(crate) fn end(&self) -> bool {
        println!(
            "\n{:55} {:>20} {:>20} {:>6} {:>20} {:>6}",
            "median (least to most)", "SQLite", "PostgreSQL", "ratio", "with a standby", "ratio"
        );
        let mut failed = 0;
        for Row { name, values } in &self.rows {
            let [sqlite, postgres, standby] = values.each_ref().map(|values| median(values.iter().copied()));
            let verdicts = [(Column::Postgres, postgres), (Column::Standby, standby)].map(|(column, middle)| {
                let goal = self.goal(column, name).filter(|_| !middle.is_nan());
                let verdict = goal.map(|goal| goal.judge(middle));
                failed += u32::from(verdict.as_ref().is_some_and(|verdict| verdict.1));
                verdict.map_or_else(String::new, |verdict| verdict.0)
            });
            println!(
                "{name:55} {:>20} {:>20} {:>6} {:>20} {:>6} {}",
                spread(&values[0]),
                spread(&values[1]),
                ratio(postgres, sqlite),
                spread(&values[2]),
                ratio(standby, sqlite),
                verdicts.join(" "),
            );
        }
        println!("{failed} goals missed by more than a fifth");
        failed == 0
    }
}

impl Goal {
    /// The goal in words, and whether it is missed by more than is tolerated.
    fn judge(self, value: f64) -> (String, bool) {
        let (sign, limit, is_met, is_near) = match self {
            Self::AtLeast(limit) => (">=", limit, value >= limit, value >= limit * (1.0 - TOLERANCE)),
            Self::AtMost(limit) => ("<=", limit, value <= limit, value <= limit * (1.0 + TOLERANCE)),
        };
        let mark = match (is_met, is_near) {
            (true, _) => "",
            (false, true) => " missed",
            (false, false) => " MISSED BY MORE THAN A FIFTH",
        };
        (format!(" {sign} {limit:.1}{mark}"), !is_near)
    }
}

fn spread(values: &[f64]) -> String {
    let middle = median(values.iter().copied());
    let digits = usize::from(middle < 100.0);
    match values {
        [] => String::new(),
        [_] => format!("{middle:.digits$}"),
        values => {
            let (least, most) = ends(values.iter().copied());
            format!("{middle:.digits$} ({least:.digits$}-{most:.digits$})")
        }
    }
}

fn ratio(value: f64, base: f64) -> String {
    if value.is_nan() || base.is_nan() || base == 0.0 { String::new() } else { format!("{:.2}", value / base) }
}
