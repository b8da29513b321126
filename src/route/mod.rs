//! Which targets an event goes to, and which one replies. Pure.
//!
//! Invariants: a plan names each target once, in the order of the routes; the first matching route that has a reply
//! decides it; `otherwise` matches events that no earlier route matched. Patterns are compiled here once, so that
//! planning cannot fail. Deliberately not here: whether the names are those of targets (`config`).

#![warn(missing_docs)]

mod index;
mod satisfiable;

use std::fmt;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use self::index::Index;
use crate::wechat::message::trim;
use crate::wechat::{Message, ReplyBody};

/// From this many patterns on, routes are looked up in an index, not tried one by one.
const MIN_INDEXED: usize = 16;

/// An account's routes, read top to bottom.
#[derive(Clone, Debug)]
pub struct Table {
    routes: Vec<Route>,
    /// `None` where there are few patterns.
    index: Option<Index>,
}

/// Where one event goes.
#[derive(Debug)]
pub struct Plan<'t> {
    /// The targets that get it, each once.
    pub targets: Vec<&'t Arc<str>>,
    /// Its reply, if any.
    pub reply: Option<&'t ReplyRule>,
}

/// One route: its events, their targets and the reply.
#[derive(Clone, Debug)]
pub struct Route {
    /// The events that it matches.
    pub when: When,
    /// The names of the targets; may be empty where there is only a fixed reply.
    pub to: Vec<Arc<str>>,
    /// The passive reply.
    pub reply: Option<ReplyRule>,
}

/// The events that a route is for.
#[derive(Clone, Debug)]
pub enum When {
    /// Those that match these patterns.
    Match(Match),
    /// Those that no earlier route matched.
    Otherwise,
}

/// Where a passive reply comes from.
#[derive(Clone, Debug)]
pub struct ReplyRule {
    /// The names of the targets that are asked, concurrently: the first in this order that replies wins.
    pub asked: Vec<Arc<str>>,
    /// The reply from the configuration, where no target is asked or none replies.
    pub fixed: Option<ReplyBody>,
}

impl Table {
    /// A table of these routes, in this order.
    pub fn new(routes: Vec<Route>) -> Self {
        let patterns: usize = routes.iter().map(|route| route.when.patterns()).sum();
        let index = (patterns >= MIN_INDEXED).then(|| Index::new(&routes));
        Self { routes, index }
    }

    /// The routes in order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Whether a route asks this target for the reply.
    pub fn asks(&self, target: &str) -> bool {
        let rules = self.routes.iter().filter_map(|route| route.reply.as_ref());
        rules.flat_map(|rule| &rule.asked).any(|asked| **asked == *target)
    }

    /// The plan for a message.
    pub fn plan(&self, message: &Message) -> Plan<'_> {
        let fields = fields(message);
        match &self.index {
            Some(index) => Plan::of(index.candidates(&fields).into_iter().map(|number| &self.routes[number])),
            None => Plan::of(self.routes.iter().filter(|route| route.when.holds(&fields))),
        }
    }

    /// The Mode 2 default of an account without routes: `own` routes of providers, follows and scans to every other
    /// identity provider, everything else to every handler. Without an identity provider the handlers get follows and
    /// scans too.
    pub fn mode2(own: Vec<Route>, identity: Vec<Arc<str>>, handlers: Vec<Arc<str>>) -> Self {
        let mut routes = own;
        if !identity.is_empty() {
            let when = When::Match(Match { event: Some(follows_and_scans()), ..Match::default() });
            routes.push(Route { when, to: identity, reply: None });
        }
        routes.push(Route { when: When::Otherwise, to: handlers, reply: None });
        Self::new(routes)
    }
}

/// What identity providers log people in by.
pub fn follows_and_scans() -> Patterns {
    Patterns(vec![Pattern::exact("subscribe", true), Pattern::exact("SCAN", true)])
}

impl<'t> Plan<'t> {
    /// The plan of the routes that match, in order; `otherwise` counts where no earlier route matches.
    fn of(routes: impl Iterator<Item = &'t Route>) -> Self {
        let mut plan = Self { targets: Vec::new(), reply: None };
        let mut matched = false;
        for route in routes {
            if matched && matches!(route.when, When::Otherwise) {
                continue;
            }
            matched = true;
            plan.reply = plan.reply.or(route.reply.as_ref());
            for target in &route.to {
                if !plan.targets.contains(&target) {
                    plan.targets.push(target);
                }
            }
        }
        plan
    }
}

impl When {
    fn holds(&self, fields: &Fields<'_>) -> bool {
        match self {
            Self::Match(patterns) => patterns.holds(fields),
            Self::Otherwise => true,
        }
    }

    /// The number of patterns.
    fn patterns(&self) -> usize {
        match self {
            Self::Match(patterns) => {
                patterns.keys().iter().filter_map(|(_, patterns)| *patterns).map(|all| all.0.len()).sum()
            }
            Self::Otherwise => 0,
        }
    }
}

/// Patterns for the fields of a message. All given ones must match.
///
/// Fields are compared without the white space around them. A field that is missing or empty matches the empty pattern
/// and no other, not even `*`.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// `MsgType`, case-blind.
    pub msg_type: Option<Patterns>,
    /// `Event` of an event, case-blind.
    pub event: Option<Patterns>,
    /// `EventKey` as sent.
    pub event_key: Option<Patterns>,
    /// The scene of a scan, or of the follow it led to.
    pub scene: Option<Patterns>,
    /// `Content` of a text.
    pub content: Option<Patterns>,
    /// `FromUserName`, the OpenID.
    pub from: Option<Patterns>,
}

impl Match {
    /// Its keys with their patterns, in the order of the documentation.
    pub fn keys(&self) -> [(&'static str, Option<&Patterns>); 6] {
        [
            ("msg_type", self.msg_type.as_ref()),
            ("event", self.event.as_ref()),
            ("event_key", self.event_key.as_ref()),
            ("scene", self.scene.as_ref()),
            ("content", self.content.as_ref()),
            ("from", self.from.as_ref()),
        ]
    }

    fn holds(&self, fields: &Fields<'_>) -> bool {
        let keys = self.keys();
        keys.iter().zip(fields).all(|((_, patterns), field)| patterns.is_none_or(|patterns| patterns.hold(field)))
    }
}

/// The fields of a message for [`Match::keys`]; empty where missing.
type Fields<'m> = [&'m str; 6];

fn fields(message: &Message) -> Fields<'_> {
    [
        trim(message.msg_type()),
        message.event_name().unwrap_or_default(),
        trim(message.event_key()),
        trim(message.scene().unwrap_or_default()),
        trim(message.content()),
        trim(message.from_user()),
    ]
}

/// One or more patterns, any of which is enough.
#[derive(Clone, Debug)]
pub struct Patterns(pub Vec<Pattern>);

impl Patterns {
    /// Whether one of them matches a text, without regard to the white space around it.
    pub fn match_text(&self, text: &str) -> bool {
        self.hold(trim(text))
    }

    /// Whether one of them matches a text, which has no white space around it.
    pub fn hold(&self, field: &str) -> bool {
        self.0.iter().any(|pattern| pattern.holds(field))
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pattern) in self.0.iter().enumerate() {
            write!(f, "{}{pattern}", if index == 0 { "" } else { " | " })?;
        }
        Ok(())
    }
}

/// An exact text, a glob with `*`, or `re:` and a regular expression. An empty text matches a missing field.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    Exact { case_blind: bool },
    Glob(Regex),
    Regex { regex: Regex, case_blind: bool },
}

/// Why a text is not a pattern.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// The regular expression matches no text, or the empty one alone.
    #[error("this regular expression can never match: {0}")]
    Never(&'static str),
    /// The text after `re:` is not a valid regular expression.
    #[error("what follows `re:` is not a valid regular expression")]
    Regex(#[source] regex::Error),
    /// The text is not a valid glob.
    #[error("not a valid glob")]
    Glob(#[source] regex::Error),
}

impl Pattern {
    /// Compiles a pattern. `case_blind` is for the fields in which WeChat's own spelling varies.
    pub fn parse(text: &str, case_blind: bool) -> Result<Self, PatternError> {
        let text = text.trim();
        let matcher = if let Some(expression) = text.strip_prefix("re:") {
            let regex = RegexBuilder::new(expression).case_insensitive(case_blind).build();
            let regex = regex.map_err(PatternError::Regex)?;
            satisfiable::check(expression).map_err(PatternError::Never)?;
            Matcher::Regex { regex, case_blind }
        } else if text.contains('*') {
            Matcher::Glob(glob(text, case_blind).map_err(PatternError::Glob)?)
        } else {
            return Ok(Self::exact(text, case_blind));
        };
        Ok(Self { text: text.to_owned(), matcher })
    }

    /// The pattern that matches this text alone.
    pub fn exact(text: &str, case_blind: bool) -> Self {
        Self { text: text.to_owned(), matcher: Matcher::Exact { case_blind } }
    }

    /// The text, if the pattern matches no other.
    pub fn exact_text(&self) -> Option<&str> {
        matches!(self.matcher, Matcher::Exact { .. }).then_some(self.text.as_str())
    }

    /// Whether it matches a field that is missing or empty.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Whether it matches a field, which has no white space around it.
    pub fn holds(&self, field: &str) -> bool {
        if field.is_empty() {
            return self.is_empty();
        }
        match &self.matcher {
            Matcher::Exact { case_blind: true } => self.text.eq_ignore_ascii_case(field),
            Matcher::Exact { case_blind: false } => self.text == field,
            Matcher::Glob(regex) | Matcher::Regex { regex, .. } => regex.is_match(field),
        }
    }
}

/// A glob in which only `*` is special: `?`, brackets and `**` of paths mean nothing in a menu key.
fn glob(text: &str, case_blind: bool) -> Result<Regex, regex::Error> {
    let flags = if case_blind { "(?is)" } else { "(?s)" };
    Regex::new(&format!("{flags}^{}$", regex::escape(text).replace("\\*", ".*")))
}

/// As it was written.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "\"\"" } else { &self.text })
    }
}

#[cfg(test)]
mod tests;
