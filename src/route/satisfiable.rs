//! Regular expressions that can match no field: a route with one would be dead, and look well.
//!
//! Fields have no white space around them and are not empty, so an expression that asks for either never matches. The
//! check errs on the safe side: an expression that it does not understand passes. Pure.

use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Checks that an expression, which is valid, may match a field.
///
/// # Errors
/// Why it never does.
pub(super) fn check(expression: &str) -> Result<(), &'static str> {
    let Ok(hir) = regex_syntax::parse(expression) else { return Ok(()) };
    if is_impossible(&hir) {
        return Err("its parts exclude each other");
    }
    let properties = hir.properties();
    let from_start = properties.look_set_prefix().contains(Look::Start);
    let to_end = properties.look_set_suffix().contains(Look::End);
    let (start, end) = (edge(&hir, Edge::Start), edge(&hir, Edge::End));
    if from_start && to_end && start.is_none() {
        return Err("it asks for an empty text; for a field that is missing or empty, write \"\"");
    }
    if from_start && start == Some(Sign::Blank) || to_end && end == Some(Sign::Blank) {
        return Err("values are compared without the white space around them");
    }
    Ok(())
}

/// A side of a text.
#[derive(Clone, Copy)]
enum Edge {
    Start,
    End,
}

/// What a part has at its edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    /// White space, always.
    Blank,
    /// Something else, or it depends.
    Other,
}

/// What is at the edge of a match; `None` for white space at most, as in `\s*`.
fn edge(part: &Hir, at: Edge) -> Option<Sign> {
    let sign = |is_blank: bool| Some(if is_blank { Sign::Blank } else { Sign::Other });
    match part.kind() {
        HirKind::Look(_) | HirKind::Empty => None,
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).unwrap_or_default();
            let outermost = match at {
                Edge::Start => text.chars().next(),
                Edge::End => text.chars().next_back(),
            };
            sign(outermost.is_some_and(char::is_whitespace))
        }
        HirKind::Class(Class::Unicode(class)) => {
            sign(class.iter().all(|range| (range.start()..=range.end()).all(char::is_whitespace)))
        }
        HirKind::Class(Class::Bytes(_)) => sign(false),
        HirKind::Capture(capture) => edge(&capture.sub, at),
        HirKind::Repetition(repetition) => {
            edge(&repetition.sub, at).filter(|sign| repetition.min > 0 || *sign == Sign::Other)
        }
        HirKind::Concat(parts) => match at {
            Edge::Start => parts.iter().find_map(|part| edge(part, at)),
            Edge::End => parts.iter().rev().find_map(|part| edge(part, at)),
        },
        HirKind::Alternation(branches) => {
            let edges: Vec<_> = branches.iter().map(|branch| edge(branch, at)).collect();
            let other = edges.contains(&Some(Sign::Other));
            if other {
                sign(false)
            } else if edges.contains(&None) {
                None
            } else {
                sign(true)
            }
        }
    }
}

fn is_impossible(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Literal(_) | HirKind::Look(_) => false,
        HirKind::Class(class) => class.minimum_len().is_none(),
        HirKind::Repetition(repetition) => repetition.min > 0 && is_impossible(&repetition.sub),
        HirKind::Capture(capture) => is_impossible(&capture.sub),
        HirKind::Alternation(branches) => branches.iter().all(is_impossible),
        HirKind::Concat(parts) => {
            let takes = |part: &Hir| part.properties().minimum_len().is_some_and(|length| length > 0);
            parts.iter().enumerate().any(|(at, part)| {
                let (before, after) = (&parts[..at], &parts[at + 1..]);
                is_impossible(part)
                    || part.properties().look_set_prefix().contains(Look::Start) && before.iter().any(takes)
                    || part.properties().look_set_suffix().contains(Look::End) && after.iter().any(takes)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_field_can_hold_is_refused() {
        for dead in [
            "^$",
            "^\\s*$",
            "^(?:)$",
            "[a&&b]",
            "a$b",
            "x^y",
            "(a|b)$c",
            "^ foo",
            "^\\s+x",
            "x $",
            "foo\\s$",
            "(^$)",
            "[a&&b]|c$d",
        ] {
            assert!(check(dead).is_err(), "{dead}");
        }
    }

    #[test]
    fn what_a_field_may_hold_passes() {
        for live in [
            "",
            ".*",
            "^#\\d+$",
            "^\\s*menu",
            "a\\s*$",
            "(?m)a$\\n^b",
            "\\b",
            "^",
            "$",
            "a|b$c",
            "^(a| b)$",
            "x?$",
            "^a?$",
            "menu_(a|b)",
            "^\\w+\\s\\d+$",
            "^( |x)",
            "(a$)?b",
            "(?i)^école$",
        ] {
            assert_eq!(check(live), Ok(()), "{live}");
        }
    }
}
