//! Which targets an event goes to, and who replies. Pure.
//!
//! Invariants: a plan names each target once, in the order of the routes; the first matching route that has a reply
//! decides it; `otherwise` matches what no route before it did. Patterns are compiled here once, so that a table that
//! exists can be followed without an error. Deliberately not here: whether the names are those of targets (`config`).

#![warn(missing_docs)]

mod index;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};
use regex::{Regex, RegexBuilder};

use self::index::Index;
use crate::wechat::{Message, ReplyBody};

/// From so many patterns on routes are looked up, not tried one by one.
const MANY: usize = 16;

/// An account's routes, read top to bottom.
#[derive(Clone, Debug)]
pub struct Table {
    routes: Vec<Route>,
    /// Where there are many patterns.
    index: Option<Index>,
}

/// What a table says about one event.
#[derive(Debug)]
pub struct Plan<'t> {
    /// The targets that get it, each once.
    pub targets: Vec<&'t Arc<str>>,
    /// How it is replied to, if at all.
    pub reply: Option<&'t ReplyRule>,
}

/// One route: what it is for, where that goes, who replies.
#[derive(Clone, Debug)]
pub struct Route {
    /// The events it is for.
    pub when: When,
    /// The names of the targets; may be empty where a fixed reply is all there is to do.
    pub to: Vec<Arc<str>>,
    /// The passive reply.
    pub reply: Option<ReplyRule>,
}

/// The events that a route is for.
#[derive(Clone, Debug)]
pub enum When {
    /// Those that hold these patterns.
    Match(Match),
    /// Those that no route before it matched.
    Otherwise,
}

/// Where a passive reply comes from.
#[derive(Clone, Debug)]
pub struct ReplyRule {
    /// The names of the targets that are asked, all at the same time: the first in this order that replies wins.
    pub asked: Vec<Arc<str>>,
    /// The reply from the configuration, where nobody is asked or none of them replies.
    pub fixed: Option<ReplyBody>,
}

impl Table {
    /// A table of these routes, in this order.
    pub fn new(routes: Vec<Route>) -> Self {
        let patterns: usize = routes.iter().map(|route| route.when.patterns()).sum();
        let index = (patterns >= MANY).then(|| Index::of(&routes));
        Self { routes, index }
    }

    /// The routes in order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// What becomes of a message.
    pub fn plan(&self, message: &Message) -> Plan<'_> {
        let fields = fields(message);
        match &self.index {
            Some(index) => Plan::of(index.candidates(&fields).into_iter().map(|number| &self.routes[number])),
            None => Plan::of(self.routes.iter().filter(|route| route.when.holds(&fields))),
        }
    }

    /// The Mode 2 default of an account without routes: follows and scans to every identity provider, everything else
    /// to every handler. Without an identity provider the handlers get follows and scans too.
    pub fn mode2(identity: Vec<Arc<str>>, handlers: Vec<Arc<str>>) -> Self {
        let mut routes = Vec::new();
        if !identity.is_empty() {
            let event = Patterns(vec![Pattern::exact("subscribe", true), Pattern::exact("SCAN", true)]);
            let when = When::Match(Match { event: Some(event), ..Match::default() });
            routes.push(Route { when, to: identity, reply: None });
        }
        routes.push(Route { when: When::Otherwise, to: handlers, reply: None });
        Self::new(routes)
    }
}

impl<'t> Plan<'t> {
    /// By the routes that hold, in order; `otherwise` counts where none holds before it.
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

    /// How many patterns there are.
    fn patterns(&self) -> usize {
        match self {
            Self::Match(patterns) => {
                patterns.keys().iter().filter_map(|(_, patterns)| *patterns).map(|all| all.0.len()).sum()
            }
            Self::Otherwise => 0,
        }
    }
}

/// Patterns for the fields of a message. All that are given must hold.
///
/// A field that a message does not have, or has empty, holds no pattern, not even `*`.
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
    /// Its keys with what was given for them, in the order of the documentation.
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

/// What the keys of [`Match::keys`] look at in a message; empty where it has nothing.
type Fields<'m> = [&'m str; 6];

fn fields(message: &Message) -> Fields<'_> {
    let event = if message.msg_type().eq_ignore_ascii_case("event") { message.event() } else { "" };
    [
        message.msg_type(),
        event,
        message.event_key(),
        message.scene().unwrap_or_default(),
        message.content(),
        message.from_user(),
    ]
}

/// One or more patterns, any of which is enough.
#[derive(Clone, Debug)]
pub struct Patterns(pub Vec<Pattern>);

impl Patterns {
    fn hold(&self, field: &str) -> bool {
        !field.is_empty() && self.0.iter().any(|pattern| pattern.holds(field))
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

/// An exact text, a glob with `*`, or `re:` and a regular expression.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Exact { case_blind: bool },
    Glob(GlobMatcher),
    Regex { regex: Regex, case_blind: bool },
}

/// Why a text is no pattern.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// It is empty.
    #[error("a pattern is an exact text, a glob with `*`, or `re:` and a regular expression, and not empty")]
    Empty,
    /// What stands after `re:` is no regular expression.
    #[error("what follows `re:` is no regular expression that can be used")]
    Regex(#[source] regex::Error),
    /// The text around `*` makes no glob.
    #[error("this is no glob that can be used")]
    Glob(#[source] globset::Error),
}

impl Pattern {
    /// Compiles a pattern. `case_blind` is for the fields in which WeChat's own spelling varies.
    pub fn parse(text: &str, case_blind: bool) -> Result<Self, PatternError> {
        let test = if let Some(expression) = text.strip_prefix("re:") {
            let regex = RegexBuilder::new(expression).case_insensitive(case_blind).build();
            Test::Regex { regex: regex.map_err(PatternError::Regex)?, case_blind }
        } else if text.contains('*') {
            Test::Glob(glob(text, case_blind).map_err(PatternError::Glob)?)
        } else if text.is_empty() {
            return Err(PatternError::Empty);
        } else {
            return Ok(Self::exact(text, case_blind));
        };
        Ok(Self { text: text.to_owned(), test })
    }

    fn exact(text: &str, case_blind: bool) -> Self {
        Self { text: text.to_owned(), test: Test::Exact { case_blind } }
    }

    fn holds(&self, field: &str) -> bool {
        match &self.test {
            Test::Exact { case_blind: true } => self.text.eq_ignore_ascii_case(field),
            Test::Exact { case_blind: false } => self.text == field,
            Test::Glob(glob) => glob.is_match(Path::new(field)),
            Test::Regex { regex, .. } => regex.is_match(field),
        }
    }
}

/// A glob in which `*` alone is special: `?`, brackets and `**` of paths mean nothing in a menu key.
fn glob(text: &str, case_blind: bool) -> Result<GlobMatcher, globset::Error> {
    let pieces: Vec<String> = text.split('*').map(globset::escape).collect();
    let mut glob = pieces.join("*");
    while glob.contains("**") {
        glob = glob.replace("**", "*");
    }
    let mut builder = GlobBuilder::new(&glob);
    builder.case_insensitive(case_blind).literal_separator(false).backslash_escape(false);
    Ok(builder.build()?.compile_matcher())
}

/// As it was written.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests;
