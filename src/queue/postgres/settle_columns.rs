//! Settlements as the columns of a statement.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::session::Value;
use super::values::{id_of, state_number, text};
use crate::clock::UnixMillis;
use crate::queue::{DeliveryState, Disposition, Settlement};

/// The values of [`SETTLE`](super::settle::SETTLE), a column each.
#[derive(Default)]
pub(super) struct Columns {
    pub(super) event: Vec<i64>,
    pub(super) target: Vec<i16>,
    holder: Vec<Option<i32>>,
    state: Vec<i16>,
    due: Vec<Option<i64>>,
    number: Vec<Option<i32>>,
    failed: Vec<i32>,
    at: Vec<i64>,
    duration: Vec<i64>,
    status: Vec<Option<i16>>,
    error: Vec<Option<String>>,
    answer: Vec<Option<Vec<u8>>>,
}

impl Columns {
    /// Of a settlement that is stored at `now`.
    pub(super) fn add(
        &mut self,
        settlement: &Settlement,
        target: i16,
        holder: Option<i32>,
        answer: Option<Vec<u8>>,
        now: UnixMillis,
    ) {
        let state = match settlement.disposition {
            Disposition::Retry(_) | Disposition::Postpone(_) => DeliveryState::Pending,
            Disposition::End(state) => state,
        };
        let attempt = settlement.attempt.as_ref();
        let counts =
            !matches!(settlement.disposition, Disposition::Postpone(_) | Disposition::End(DeliveryState::Delivered));
        self.event.push(id_of(settlement.event));
        self.target.push(target);
        self.holder.push(holder);
        self.state.push(state_number(state));
        self.due.push(settlement.next_due(now).map(|due| due.0));
        self.number.push(attempt.map(|attempt| i32::try_from(attempt.number).unwrap_or(i32::MAX)));
        self.failed.push(i32::from(attempt.is_some() && counts));
        self.at.push(attempt.map_or(0, |attempt| attempt.at.0));
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        self.duration.push(attempt.map_or(0, |attempt| micros(attempt.duration)));
        self.status.push(attempt.and_then(|attempt| attempt.status).map(u16::cast_signed));
        self.error.push(attempt.and_then(|attempt| attempt.error.as_deref()).map(|error| text(error).into_owned()));
        self.answer.push(answer);
    }

    pub(super) fn values<'v>(&'v self, now: &'v i64) -> [Value<'v>; 13] {
        [
            (&self.event, Type::INT8_ARRAY),
            (&self.target, Type::INT2_ARRAY),
            (&self.holder, Type::INT4_ARRAY),
            (&self.state, Type::INT2_ARRAY),
            (&self.due, Type::INT8_ARRAY),
            (&self.number, Type::INT4_ARRAY),
            (&self.failed, Type::INT4_ARRAY),
            (&self.at, Type::INT8_ARRAY),
            (&self.duration, Type::INT8_ARRAY),
            (&self.status, Type::INT2_ARRAY),
            (&self.error, Type::TEXT_ARRAY),
            (&self.answer, Type::BYTEA_ARRAY),
            (now, Type::INT8),
        ]
    }
}
