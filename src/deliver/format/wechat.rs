//! `wechat`: a push as WeChat itself would send it, signed and encrypted with the target's own credentials, so that a
//! backend keeps its SDK.

use std::borrow::Cow;

use super::{EncodeError, Encoded};
use crate::clock::UnixMillis;
use crate::event::Event;
use crate::wechat::{Credentials, Reply, ReplyError, Salt};

pub(super) fn encode(
    event: &Event,
    credentials: &Credentials,
    bare_scene: bool,
    now: UnixMillis,
) -> Result<Encoded, EncodeError> {
    let mut random = [0; 24];
    getrandom::fill(&mut random)?;
    let with_bare_scene = if bare_scene { event.message.with_bare_scene() } else { None };
    let clear = with_bare_scene.map_or_else(|| String::from_utf8_lossy(&event.clear), Cow::Owned);
    let push = credentials.push(&clear, event.message.from_user(), &Salt::new(now.seconds(), random));
    Ok(Encoded { query: Some(push.query), content_type: "text/xml", body: push.body.into() })
}

/// The backend's reply: in clear, or encrypted with the credentials of its push.
pub(in crate::deliver) fn read_reply(credentials: &Credentials, body: &[u8]) -> Result<Option<Reply>, ReplyError> {
    match Reply::parse(body) {
        Err(ReplyError::Sealed) => Reply::parse(&credentials.open_reply(body).map_err(ReplyError::Unopened)?),
        clear => clear,
    }
}
