//! The numbers of target names, which rows hold instead of names. A name keeps its number for ever, so they are cached.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_postgres::types::Type;

use super::failure::Failure;
use super::session::{BoundQuery, Session};

const ADD: &str = "INSERT INTO target (no, name) \
                   SELECT coalesce((SELECT max(no) FROM target), 0) + row_number() OVER (), n.name \
                     FROM unnest($1::text[]) n(name) WHERE NOT EXISTS (SELECT FROM target t WHERE t.name = n.name)";
const FIND: &str = "SELECT name, no FROM target WHERE name = ANY($1::text[])";
/// Two replicas that meet a name at the same time would give it two numbers.
const LOCK: &str = "SELECT pg_advisory_xact_lock(2003, -2);";

/// The numbers that are known so far.
#[derive(Debug, Default)]
pub(super) struct TargetNumbers(Mutex<HashMap<Arc<str>, i16>>);

impl TargetNumbers {
    /// The number of a name that was asked for before.
    pub(super) fn known(&self, name: &str) -> Option<i16> {
        self.0.lock().get(name).copied()
    }

    /// The name with that number, if it was asked for before.
    pub(super) fn name(&self, number: i16) -> Option<Arc<str>> {
        self.0.lock().iter().find(|(_, known)| **known == number).map(|(name, _)| Arc::clone(name))
    }

    /// Every name that was asked for.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        self.0.lock().keys().cloned().collect()
    }

    /// Looks up the numbers of these names; a name that never had a delivery has none.
    pub(super) async fn find(&self, session: &Session, names: &[Arc<str>]) -> Result<(), Failure> {
        let Some(missing) = self.missing(names) else { return Ok(()) };
        self.keep(names, session.query(FIND, &[(&missing, Type::TEXT_ARRAY)]).await?)
    }

    /// As [`TargetNumbers::find`]; a name that has no number gets one.
    pub(super) async fn find_or_add(&self, session: &Session, names: &[Arc<str>]) -> Result<(), Failure> {
        let Some(missing) = self.missing(names) else { return Ok(()) };
        let values = [(&missing as _, Type::TEXT_ARRAY)];
        let queries = [BoundQuery { sql: ADD, values: &values }, BoundQuery { sql: FIND, values: &values }];
        let mut answers = session.transact(LOCK, &queries).await?;
        self.keep(names, answers.pop().unwrap_or_default())
    }

    fn missing<'n>(&self, names: &'n [Arc<str>]) -> Option<Vec<&'n str>> {
        let known = self.0.lock();
        let mut missing: Vec<&str> =
            names.iter().map(|name| &**name).filter(|name| !known.contains_key(*name)).collect();
        missing.sort_unstable();
        missing.dedup();
        (!missing.is_empty()).then_some(missing)
    }

    fn keep(&self, names: &[Arc<str>], rows: Vec<tokio_postgres::Row>) -> Result<(), Failure> {
        let mut known = self.0.lock();
        for row in rows {
            let (name, number): (&str, i16) = (row.try_get(0)?, row.try_get(1)?);
            let name = names.iter().find(|given| &***given == name).map_or_else(|| Arc::from(name), Arc::clone);
            known.insert(name, number);
        }
        Ok(())
    }
}
