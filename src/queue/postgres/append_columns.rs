//! Fresh events as the columns of a statement.

use tokio_postgres::types::Type;

use super::append::Append;
use super::engine::Engine;
use super::session::Value;
use super::values::{id_of, text};
use crate::clock::UnixMillis;
use crate::queue::checksum::{self, CoveredColumns};
use crate::queue::persons::{self, user_number};
use crate::queue::stored::{HELD, mode_number};

/// The values of [`APPEND`](super::append::APPEND), a column each.
#[derive(Default)]
pub(super) struct Columns<'a> {
    k: Vec<&'a [u8]>,
    id: Vec<i64>,
    targets: Vec<i16>,
    mode: Vec<i16>,
    key: Vec<Option<i16>>,
    received_at: Vec<i64>,
    asked_ms: Vec<i64>,
    account: Vec<String>,
    app_id: Vec<String>,
    msg_type: Vec<String>,
    event: Vec<String>,
    event_key: Vec<String>,
    from_user: Vec<String>,
    traceparent: Vec<Option<&'a str>>,
    reply: Vec<Option<&'a [u8]>>,
    query: Vec<&'a [u8]>,
    body: Vec<&'a [u8]>,
    clear: Vec<Option<&'a [u8]>>,
    checksum: Vec<Option<i64>>,
    reply_checksum: Vec<Option<i64>>,
    of: Vec<i64>,
    target: Vec<i16>,
    holder: Vec<Option<i32>>,
    due: Vec<i64>,
    pub(super) usr: Vec<Option<i64>>,
}

impl<'a> Columns<'a> {
    pub(super) fn add(&mut self, engine: &Engine, append: &'a Append) {
        let (new, event) = (&append.new, &*append.new.event);
        let (message, id) = (&event.message, id_of(event.id));
        let body: &[u8] = &event.body;
        let clear = (event.clear != event.body).then_some(&event.clear[..]);
        let in_clear = (new.reply.as_deref().map(str::as_bytes), event.query.as_bytes(), body, clear, None);
        let (reply, query, body, clear, key) = append.sealed.as_ref().map_or(in_clear, |sealed| {
            let key = i16::try_from(sealed.key).ok();
            (sealed.reply(), &sealed.query[..], &sealed.body[..], sealed.clear.as_deref(), key)
        });
        self.k.push(&new.key.0);
        self.id.push(id);
        self.targets.push(i16::try_from(new.targets.len()).unwrap_or(i16::MAX));
        self.mode.push(mode_number(event.mode));
        self.key.push(key);
        self.received_at.push(event.received_at.0);
        let asked = new.awaited.iter().map(|(_, awaited)| awaited.until.since(UnixMillis::now()));
        self.asked_ms.push(asked.max().map_or(0, |asked| i64::try_from(asked.as_millis()).unwrap_or(i64::MAX)));
        let (account, app_id) = (text(&event.account), text(&event.app_id));
        // Of what is stored: NUL is replaced in it.
        let covered = checksum::columns_of(new, append.sealed.as_ref());
        let covered = CoveredColumns { account: &account, app_id: &app_id, ..covered };
        self.checksum.push(Some(covered.checksum()));
        self.account.push(account.into_owned());
        self.app_id.push(app_id.into_owned());
        self.msg_type.push(text(message.msg_type()).into_owned());
        self.event.push(text(message.event()).into_owned());
        self.event_key.push(text(message.event_key()).into_owned());
        self.from_user.push(text(&persons::column(event)).into_owned());
        self.traceparent.push(event.traceparent.as_deref());
        self.reply.push(reply);
        self.query.push(query);
        self.body.push(body);
        self.clear.push(clear);
        self.reply_checksum.push(reply.map(|reply| checksum::of_reply(event.id, reply)));
        for (target, place) in new.targets.iter().zip(&append.places) {
            let in_order = engine.inboxes.in_order(target);
            self.of.push(id);
            self.target.push(engine.targets.known(target).unwrap_or_default());
            self.holder.push(place.as_ref().map(|_| engine.incarnation()));
            self.due.push(event.received_at.0.min(HELD.0 - 1));
            self.usr.push(in_order.then(|| user_number(message.from_user())));
        }
    }

    pub(super) fn values(&self) -> [Value<'_>; 25] {
        [
            (&self.k, Type::BYTEA_ARRAY),
            (&self.id, Type::INT8_ARRAY),
            (&self.targets, Type::INT2_ARRAY),
            (&self.mode, Type::INT2_ARRAY),
            (&self.key, Type::INT2_ARRAY),
            (&self.received_at, Type::INT8_ARRAY),
            (&self.asked_ms, Type::INT8_ARRAY),
            (&self.account, Type::TEXT_ARRAY),
            (&self.app_id, Type::TEXT_ARRAY),
            (&self.msg_type, Type::TEXT_ARRAY),
            (&self.event, Type::TEXT_ARRAY),
            (&self.event_key, Type::TEXT_ARRAY),
            (&self.from_user, Type::TEXT_ARRAY),
            (&self.traceparent, Type::TEXT_ARRAY),
            (&self.reply, Type::BYTEA_ARRAY),
            (&self.query, Type::BYTEA_ARRAY),
            (&self.body, Type::BYTEA_ARRAY),
            (&self.clear, Type::BYTEA_ARRAY),
            (&self.checksum, Type::INT8_ARRAY),
            (&self.reply_checksum, Type::INT8_ARRAY),
            (&self.of, Type::INT8_ARRAY),
            (&self.target, Type::INT2_ARRAY),
            (&self.holder, Type::INT4_ARRAY),
            (&self.due, Type::INT8_ARRAY),
            (&self.usr, Type::INT8_ARRAY),
        ]
    }
}
