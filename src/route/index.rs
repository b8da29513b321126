//! Many routes at once: which routes of a table hold a message, without trying each.
//!
//! For each key of `match` the exact texts are looked up, and globs and regular expressions run over the message's field
//! together, as one automaton, or as few as they fit into. So the cost hardly grows with the number of routes. Invariant:
//! what is found is what [`Match::holds`](super::Match::holds) says of each route; a test compares the two. Deliberately
//! not here: `otherwise`, targets and replies, which are the table's.

use std::collections::BTreeMap;

use regex::bytes::{RegexSet, RegexSetBuilder};

use super::{Fields, Pattern, Route, Test, When};

/// The most memory of an automaton's program, in bytes: beyond it the states that it makes as it runs would find no room.
const PROGRAM: usize = 1 << 20;
/// With fewer expressions an automaton gains nothing.
const FEW: usize = 8;

/// What a table's routes ask of each field.
#[derive(Clone, Debug)]
pub(super) struct Index {
    all: Numbers,
    /// Of each key of `match`; `None` where no route has it.
    keys: [Option<Key>; 6],
}

/// What the routes ask of one field.
#[derive(Clone, Debug)]
struct Key {
    /// The routes that ask nothing of it.
    indifferent: Numbers,
    exact: BTreeMap<String, Numbers>,
    /// The same in lower case, where case does not count.
    case_blind: BTreeMap<String, Numbers>,
    tests: Vec<Tests>,
}

/// Globs and regular expressions, each with the number of its route.
#[derive(Clone, Debug)]
enum Tests {
    Together(RegexSet, Vec<usize>),
    Each(Vec<(Pattern, usize)>),
}

/// A set of routes, a bit each.
#[derive(Clone, Debug)]
struct Numbers(Vec<u64>);

impl Index {
    pub(super) fn of(routes: &[Route]) -> Self {
        Self { all: Numbers::all(routes.len()), keys: std::array::from_fn(|place| Key::of(routes, place)) }
    }

    /// The numbers of the routes whose patterns hold, in order, and of those that have none.
    pub(super) fn candidates(&self, fields: &Fields<'_>) -> Vec<usize> {
        let mut held = self.all.clone();
        for (key, field) in self.keys.iter().zip(fields) {
            if let Some(key) = key {
                held.keep(&key.held(field));
            }
        }
        held.iter().collect()
    }

    #[cfg(test)]
    pub(super) fn automata(&self) -> usize {
        let tests = self.keys.iter().flatten().flat_map(|key| &key.tests);
        tests.filter(|tests| matches!(tests, Tests::Together(..))).count()
    }
}

impl Key {
    /// The key at a place of [`Match::keys`](super::Match::keys), if a route has it.
    fn of(routes: &[Route], place: usize) -> Option<Self> {
        let mut key = Self {
            indifferent: Numbers::none(routes.len()),
            exact: BTreeMap::new(),
            case_blind: BTreeMap::new(),
            tests: Vec::new(),
        };
        let none = || Numbers::none(routes.len());
        let (mut together, mut each, mut is_asked) = (Vec::new(), Vec::new(), false);
        for (number, route) in routes.iter().enumerate() {
            let patterns = match &route.when {
                When::Match(patterns) => patterns.keys()[place].1,
                When::Otherwise => None,
            };
            let Some(patterns) = patterns else {
                key.indifferent.insert(number);
                continue;
            };
            is_asked = true;
            for pattern in &patterns.0 {
                match expression(pattern) {
                    Expression::Exact(text) => key.exact.entry(text).or_insert_with(none).insert(number),
                    Expression::CaseBlind(text) => key.case_blind.entry(text).or_insert_with(none).insert(number),
                    Expression::Regex(_) if is_alone(pattern) => each.push((pattern.clone(), number)),
                    Expression::Regex(text) => together.push((text, pattern.clone(), number)),
                }
            }
        }
        join(together, &mut key.tests);
        key.tests.push(Tests::Each(each));
        is_asked.then_some(key)
    }

    /// The routes whose patterns for the field hold, and those that have none.
    fn held(&self, field: &str) -> Numbers {
        let mut held = self.indifferent.clone();
        if field.is_empty() {
            return held;
        }
        let exact = self.exact.get(field);
        let case_blind =
            if self.case_blind.is_empty() { None } else { self.case_blind.get(&field.to_ascii_lowercase()) };
        exact.into_iter().chain(case_blind).for_each(|routes| held.add(routes));
        for tests in &self.tests {
            match tests {
                Tests::Together(set, routes) => {
                    set.matches(field.as_bytes()).iter().for_each(|place| held.insert(routes[place]));
                }
                Tests::Each(tests) => {
                    let passed = tests.iter().filter(|(pattern, _)| pattern.holds(field));
                    passed.for_each(|(_, number)| held.insert(*number));
                }
            }
        }
        held
    }
}

/// How a pattern is looked for together with others.
enum Expression {
    Exact(String),
    /// In lower case.
    CaseBlind(String),
    Regex(String),
}

fn expression(pattern: &Pattern) -> Expression {
    match &pattern.test {
        Test::Exact { case_blind: false } => Expression::Exact(pattern.text.clone()),
        Test::Exact { case_blind: true } => Expression::CaseBlind(pattern.text.to_ascii_lowercase()),
        Test::Glob(glob) => Expression::Regex(format!("(?s){}", glob.glob().regex())),
        Test::Regex { regex, case_blind: false } => Expression::Regex(regex.as_str().to_owned()),
        Test::Regex { regex, case_blind: true } => Expression::Regex(format!("(?i){regex}")),
    }
}

/// Makes automata of as many expressions as fit into one.
fn join(tests: Vec<(String, Pattern, usize)>, into: &mut Vec<Tests>) {
    if tests.len() < FEW {
        into.push(Tests::Each(tests.into_iter().map(|(_, pattern, number)| (pattern, number)).collect()));
        return;
    }
    let expressions = tests.iter().map(|(expression, ..)| expression);
    match RegexSetBuilder::new(expressions).size_limit(PROGRAM).build() {
        Ok(set) => into.push(Tests::Together(set, tests.into_iter().map(|(.., number)| number).collect())),
        Err(_) => {
            let mut first = tests;
            let second = first.split_off(first.len() / 2);
            join(first, into);
            join(second, into);
        }
    }
}

/// Whether a pattern is better tried by itself: the fast way through an automaton ends at the first letter beyond ASCII
/// if one expression in it asks for the edges of words.
fn is_alone(pattern: &Pattern) -> bool {
    pattern.text.contains("\\b") || pattern.text.contains("\\B")
}

impl Numbers {
    fn none(routes: usize) -> Self {
        Self(vec![0; routes.div_ceil(64)])
    }

    fn all(routes: usize) -> Self {
        let mut all = Self::none(routes);
        (0..routes).for_each(|number| all.insert(number));
        all
    }

    fn insert(&mut self, number: usize) {
        self.0[number / 64] |= 1 << (number % 64);
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }

    /// Drops what is not in the other set.
    fn keep(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine &= theirs);
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(place, word)| {
            let rest = |word: &u64| Some(word & (word - 1)).filter(|rest| *rest != 0);
            let bits = std::iter::successors(Some(*word).filter(|word| *word != 0), rest);
            bits.map(move |word| place * 64 + word.trailing_zeros() as usize)
        })
    }
}
