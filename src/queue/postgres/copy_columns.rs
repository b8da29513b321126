//! Copied rows as the columns of a statement.

use tokio_postgres::types::Type;

use super::session::Value;
use super::values::text;
use crate::event::EventId;
use crate::queue::copy::CopyError;
use crate::queue::copy::rows::CopyPage;

/// The values of [`ADD_PAGE`](super::copy::ADD_PAGE), a column each.
#[derive(Default)]
pub(super) struct CopyColumns<'a> {
    k: Vec<&'a [u8]>,
    id: Vec<i64>,
    targets: Vec<i16>,
    mode: Vec<i16>,
    key: Vec<Option<i16>>,
    received_at: Vec<i64>,
    checksum: Vec<Option<i64>>,
    reply_checksum: Vec<Option<i64>>,
    texts: [Vec<String>; 6],
    traceparent: Vec<Option<&'a str>>,
    payload: [Vec<Option<&'a [u8]>>; 4],
    deliveries: DeliveryColumns,
    attempts: AttemptColumns<'a>,
    replies: ReplyColumns<'a>,
}

#[derive(Default)]
struct DeliveryColumns {
    event: Vec<i64>,
    /// `target` and `state`.
    small: [Vec<i16>; 2],
    /// `attempts` and `failures`.
    counts: [Vec<i32>; 2],
    due: Vec<i64>,
    /// `ended_at` and `usr`.
    optional: [Vec<Option<i64>>; 2],
}

#[derive(Default)]
struct AttemptColumns<'a> {
    event: Vec<i64>,
    target: Vec<i16>,
    number: Vec<i32>,
    /// `at` and `duration_us`.
    times: [Vec<i64>; 2],
    status: Vec<Option<i16>>,
    error: Vec<Option<String>>,
    answer: Vec<Option<&'a [u8]>>,
}

#[derive(Default)]
struct ReplyColumns<'a> {
    event: Vec<i64>,
    no: Vec<i32>,
    /// `target` and `state`.
    small: [Vec<i16>; 2],
    attempt: Vec<Option<i32>>,
    /// `at`, `expires_at`, `picked_by` and `checksum`.
    optional: [Vec<Option<i64>>; 4],
    taken: Vec<i64>,
    /// `account` and `usr`.
    texts: [Vec<String>; 2],
    content: Vec<Option<&'a [u8]>>,
}

impl<'a> CopyColumns<'a> {
    /// # Errors
    /// If a number is too great for its column.
    pub(super) fn of(page: &'a CopyPage) -> Result<Self, CopyError> {
        let mut columns = Self::default();
        for row in &page.events {
            columns.k.push(&row.content_key);
            columns.id.push(row.id);
            columns.targets.push(small(row.id, "the number of targets", row.targets)?);
            columns.mode.push(small(row.id, "the mode", row.mode)?);
            columns.key.push(row.key.map(|key| small(row.id, "the key", key)).transpose()?);
            columns.received_at.push(row.received_at);
            columns.checksum.push(row.checksum);
            columns.reply_checksum.push(row.reply_checksum);
            let texts = [&row.account, &row.app_id, &row.msg_type, &row.event, &row.event_key, &row.from_user];
            for (column, value) in columns.texts.iter_mut().zip(texts) {
                column.push(text(value).into_owned());
            }
            columns.traceparent.push(row.traceparent.as_deref());
            let payload = [row.reply.as_deref(), Some(&row.query[..]), Some(&row.body[..]), row.clear.as_deref()];
            columns.payload.iter_mut().zip(payload).for_each(|(column, value)| column.push(value));
        }
        for row in &page.deliveries {
            let of = &mut columns.deliveries;
            of.event.push(row.event);
            for (column, value) in of.small.iter_mut().zip([row.target, row.state]) {
                column.push(small(row.event, "a delivery", value)?);
            }
            for (column, value) in of.counts.iter_mut().zip([row.attempts, row.failures]) {
                column.push(i32::try_from(value).map_err(|_| unfit(row.event, "a number of attempts"))?);
            }
            of.due.push(row.due);
            of.optional.iter_mut().zip([row.ended_at, row.user]).for_each(|(column, value)| column.push(value));
        }
        for row in &page.attempts {
            let of = &mut columns.attempts;
            of.event.push(row.event);
            of.target.push(small(row.event, "an attempt", row.target)?);
            of.number.push(i32::try_from(row.number).map_err(|_| unfit(row.event, "the number of an attempt"))?);
            of.times.iter_mut().zip([row.at, row.duration_us]).for_each(|(column, value)| column.push(value));
            of.status.push(row.status.map(|status| small(row.event, "a status", status)).transpose()?);
            of.error.push(row.error.as_deref().map(|error| text(error).into_owned()));
            of.answer.push(row.answer.as_deref());
        }
        for row in &page.replies {
            let of = &mut columns.replies;
            let number = |value| i32::try_from(value).map_err(|_| unfit(row.event, "a reply"));
            of.event.push(row.event);
            of.no.push(number(row.no)?);
            for (column, value) in of.small.iter_mut().zip([row.target, row.state]) {
                column.push(small(row.event, "a reply", value)?);
            }
            of.attempt.push(row.attempt.map(number).transpose()?);
            let optional = [row.at, row.expires_at, row.picked_by, row.checksum];
            of.optional.iter_mut().zip(optional).for_each(|(column, value)| column.push(value));
            of.taken.push(row.taken);
            let texts = [&row.account, &row.user];
            of.texts.iter_mut().zip(texts).for_each(|(column, value)| column.push(text(value).into_owned()));
            of.content.push(row.content.as_deref());
        }
        Ok(columns)
    }

    pub(super) fn values<'v>(&'v self, last: &'v i64) -> [Value<'v>; 49] {
        let Self { texts, payload, deliveries, attempts, replies, .. } = self;
        [
            (&self.k, Type::BYTEA_ARRAY),
            (&self.id, Type::INT8_ARRAY),
            (&self.targets, Type::INT2_ARRAY),
            (&self.mode, Type::INT2_ARRAY),
            (&self.key, Type::INT2_ARRAY),
            (&self.received_at, Type::INT8_ARRAY),
            (&self.checksum, Type::INT8_ARRAY),
            (&self.reply_checksum, Type::INT8_ARRAY),
            (&texts[0], Type::TEXT_ARRAY),
            (&texts[1], Type::TEXT_ARRAY),
            (&texts[2], Type::TEXT_ARRAY),
            (&texts[3], Type::TEXT_ARRAY),
            (&texts[4], Type::TEXT_ARRAY),
            (&texts[5], Type::TEXT_ARRAY),
            (&self.traceparent, Type::TEXT_ARRAY),
            (&payload[0], Type::BYTEA_ARRAY),
            (&payload[1], Type::BYTEA_ARRAY),
            (&payload[2], Type::BYTEA_ARRAY),
            (&payload[3], Type::BYTEA_ARRAY),
            (&deliveries.event, Type::INT8_ARRAY),
            (&deliveries.small[0], Type::INT2_ARRAY),
            (&deliveries.small[1], Type::INT2_ARRAY),
            (&deliveries.counts[0], Type::INT4_ARRAY),
            (&deliveries.counts[1], Type::INT4_ARRAY),
            (&deliveries.due, Type::INT8_ARRAY),
            (&deliveries.optional[0], Type::INT8_ARRAY),
            (&deliveries.optional[1], Type::INT8_ARRAY),
            (&attempts.event, Type::INT8_ARRAY),
            (&attempts.target, Type::INT2_ARRAY),
            (&attempts.number, Type::INT4_ARRAY),
            (&attempts.times[0], Type::INT8_ARRAY),
            (&attempts.times[1], Type::INT8_ARRAY),
            (&attempts.status, Type::INT2_ARRAY),
            (&attempts.error, Type::TEXT_ARRAY),
            (&attempts.answer, Type::BYTEA_ARRAY),
            (last, Type::INT8),
            (&replies.event, Type::INT8_ARRAY),
            (&replies.no, Type::INT4_ARRAY),
            (&replies.small[0], Type::INT2_ARRAY),
            (&replies.small[1], Type::INT2_ARRAY),
            (&replies.attempt, Type::INT4_ARRAY),
            (&replies.optional[0], Type::INT8_ARRAY),
            (&replies.taken, Type::INT8_ARRAY),
            (&replies.optional[1], Type::INT8_ARRAY),
            (&replies.optional[2], Type::INT8_ARRAY),
            (&replies.texts[0], Type::TEXT_ARRAY),
            (&replies.texts[1], Type::TEXT_ARRAY),
            (&replies.optional[3], Type::INT8_ARRAY),
            (&replies.content, Type::BYTEA_ARRAY),
        ]
    }
}

fn small(event: i64, what: &'static str, value: i64) -> Result<i16, CopyError> {
    i16::try_from(value).map_err(|_| unfit(event, what))
}

fn unfit(event: i64, what: &'static str) -> CopyError {
    CopyError::Unfit { event: EventId(event.cast_unsigned()), what }
}
