//! `json`: the relay's own form, every element of the message included.

use serde::Serialize;

use super::{EncodeError, Encoded, or_null, xml};
use crate::event::Event;
use crate::wechat::json;

#[derive(Serialize)]
struct EventBody<'e> {
    id: String,
    account: &'e str,
    app_id: &'e str,
    mode: &'static str,
    received_at: String,
    to_user: Option<&'e str>,
    from_user: Option<&'e str>,
    create_time: Option<u64>,
    msg_type: Option<&'e str>,
    event: Option<&'e str>,
    event_key: Option<&'e str>,
    scene: Option<&'e str>,
    message: serde_json::Value,
    xml: &'e str,
}

pub(super) fn encode(event: &Event) -> Result<Encoded, EncodeError> {
    let message = &event.message;
    let body = EventBody {
        id: event.id.to_string(),
        account: &event.account,
        app_id: &event.app_id,
        mode: event.mode.as_str(),
        received_at: event.received_at.to_string(),
        to_user: or_null(message.to_user()),
        from_user: or_null(message.from_user()),
        create_time: message.create_time(),
        msg_type: or_null(message.msg_type()),
        event: or_null(message.event()),
        event_key: or_null(message.event_key()),
        scene: message.scene(),
        message: json::message(&message.root),
        xml: &xml(event),
    };
    Ok(Encoded { query: None, content_type: "application/json", body: serde_json::to_vec(&body)?.into() })
}
