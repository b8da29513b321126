//! Many routes at once: finds the routes that match a message without trying each.
//!
//! The simple version, which tables with few patterns still use, tries route by route ([`When::holds`]): with 1,000
//! routes that took three times the processor time of a whole push. Here, for each key of `match`, exact texts are
//! looked up in a map, and globs and regular expressions run over the message's field together, as one automaton, or as
//! few as they fit into: 1,000 routes cost a push about as much as one (at most 1.04 times, docs/performance.md).
//!
//! Invariant: the result is what [`Match::holds`](super::Match::holds) says about each route; a test compares the two.
//! Deliberately not here: `otherwise`, targets and replies, which are the table's.

use std::collections::BTreeMap;

use regex::bytes::{RegexSet, RegexSetBuilder};

use super::{Fields, Matcher, Pattern, Route, When};

/// The largest program of an automaton, in bytes: the states of a larger one, made while it runs, would not fit its
/// cache.
const MAX_PROGRAM: usize = 1 << 20;
/// With fewer expressions an automaton gains nothing.
const MIN_EXPRESSIONS: usize = 8;

/// The patterns of a table's routes, by field.
#[derive(Clone, Debug)]
pub(super) struct Index {
    all: RouteSet,
    /// For each key of `match`; `None` where no route has it.
    keys: [Option<KeyIndex>; 6],
}

/// The patterns for one field.
#[derive(Clone, Debug)]
struct KeyIndex {
    /// The routes without a pattern for it.
    unconstrained: RouteSet,
    exact: BTreeMap<String, RouteSet>,
    /// The same in lower case, where case does not count.
    case_blind: BTreeMap<String, RouteSet>,
    expressions: Vec<Expressions>,
}

/// Globs and regular expressions, each with the index of its route.
#[derive(Clone, Debug)]
enum Expressions {
    Automaton(RegexSet, Vec<usize>),
    Each(Vec<(Pattern, usize)>),
}

/// A set of routes, one bit each.
#[derive(Clone, Debug)]
struct RouteSet(Vec<u64>);

impl Index {
    pub(super) fn new(routes: &[Route]) -> Self {
        Self { all: RouteSet::all(routes.len()), keys: std::array::from_fn(|key| KeyIndex::new(routes, key)) }
    }

    /// The indexes of the routes whose patterns match, in order, and of those that have none.
    pub(super) fn candidates(&self, fields: &Fields<'_>) -> Vec<usize> {
        let mut held = self.all.clone();
        for (key, field) in self.keys.iter().zip(fields) {
            if let Some(key) = key {
                held.intersect(&key.matching(field));
            }
        }
        held.iter().collect()
    }

    #[cfg(test)]
    pub(super) fn automata(&self) -> usize {
        let expressions = self.keys.iter().flatten().flat_map(|key| &key.expressions);
        expressions.filter(|expressions| matches!(expressions, Expressions::Automaton(..))).count()
    }
}

impl KeyIndex {
    /// The index of one of [`Match::keys`](super::Match::keys), if a route has it.
    fn new(routes: &[Route], place: usize) -> Option<Self> {
        let mut key = Self {
            unconstrained: RouteSet::empty(routes.len()),
            exact: BTreeMap::new(),
            case_blind: BTreeMap::new(),
            expressions: Vec::new(),
        };
        let none = || RouteSet::empty(routes.len());
        let (mut together, mut each, mut is_asked) = (Vec::new(), Vec::new(), false);
        for (number, route) in routes.iter().enumerate() {
            let patterns = match &route.when {
                When::Match(patterns) => patterns.keys()[place].1,
                When::Otherwise => None,
            };
            let Some(patterns) = patterns else {
                key.unconstrained.insert(number);
                continue;
            };
            is_asked = true;
            for pattern in &patterns.0 {
                match expression(pattern) {
                    Expression::Exact(text) => key.exact.entry(text).or_insert_with(none).insert(number),
                    Expression::CaseBlind(text) => key.case_blind.entry(text).or_insert_with(none).insert(number),
                    Expression::Regex(_) if has_word_boundary(pattern) => each.push((pattern.clone(), number)),
                    Expression::Regex(text) => together.push((text, pattern.clone(), number)),
                }
            }
        }
        build_automata(together, &mut key.expressions);
        key.expressions.push(Expressions::Each(each));
        is_asked.then_some(key)
    }

    /// The routes whose patterns match the field, and those that have none.
    fn matching(&self, field: &str) -> RouteSet {
        let mut held = self.unconstrained.clone();
        if field.is_empty() {
            // No glob or regular expression matches it.
            let empty = [self.exact.get(""), self.case_blind.get("")];
            empty.into_iter().flatten().for_each(|routes| held.union(routes));
            return held;
        }
        let exact = self.exact.get(field);
        let case_blind =
            if self.case_blind.is_empty() { None } else { self.case_blind.get(&field.to_ascii_lowercase()) };
        exact.into_iter().chain(case_blind).for_each(|routes| held.union(routes));
        for expressions in &self.expressions {
            match expressions {
                Expressions::Automaton(set, routes) => {
                    set.matches(field.as_bytes()).iter().for_each(|place| held.insert(routes[place]));
                }
                Expressions::Each(patterns) => {
                    let passed = patterns.iter().filter(|(pattern, _)| pattern.holds(field));
                    passed.for_each(|(_, number)| held.insert(*number));
                }
            }
        }
        held
    }
}

/// How a pattern is matched together with others.
enum Expression {
    Exact(String),
    /// In lower case.
    CaseBlind(String),
    Regex(String),
}

fn expression(pattern: &Pattern) -> Expression {
    match &pattern.matcher {
        Matcher::Exact { case_blind: false } => Expression::Exact(pattern.text.clone()),
        Matcher::Exact { case_blind: true } => Expression::CaseBlind(pattern.text.to_ascii_lowercase()),
        Matcher::Glob(regex) | Matcher::Regex { regex, case_blind: false } => {
            Expression::Regex(regex.as_str().to_owned())
        }
        Matcher::Regex { regex, case_blind: true } => Expression::Regex(format!("(?i){regex}")),
    }
}

/// Builds automata, each of as many expressions as fit into one.
fn build_automata(expressions: Vec<(String, Pattern, usize)>, into: &mut Vec<Expressions>) {
    if expressions.len() < MIN_EXPRESSIONS {
        into.push(Expressions::Each(expressions.into_iter().map(|(_, pattern, number)| (pattern, number)).collect()));
        return;
    }
    let texts = expressions.iter().map(|(text, ..)| text);
    match RegexSetBuilder::new(texts).size_limit(MAX_PROGRAM).build() {
        Ok(set) => into.push(Expressions::Automaton(set, expressions.into_iter().map(|(.., number)| number).collect())),
        Err(_) => {
            let mut first = expressions;
            let second = first.split_off(first.len() / 2);
            build_automata(first, into);
            build_automata(second, into);
        }
    }
}

/// Whether a pattern is better matched by itself: one word boundary in an automaton ends its fast path at the first
/// letter beyond ASCII.
fn has_word_boundary(pattern: &Pattern) -> bool {
    pattern.text.contains("\\b") || pattern.text.contains("\\B")
}

impl RouteSet {
    fn empty(routes: usize) -> Self {
        Self(vec![0; routes.div_ceil(64)])
    }

    fn all(routes: usize) -> Self {
        let mut all = Self::empty(routes);
        (0..routes).for_each(|number| all.insert(number));
        all
    }

    fn insert(&mut self, number: usize) {
        self.0[number / 64] |= 1 << (number % 64);
    }

    fn union(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }

    fn intersect(&mut self, other: &Self) {
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
