//! `cloudevents`: CloudEvents 1.0, structured mode (github.com/cloudevents/spec, v1.0.2).

use serde::Serialize;

use super::{EncodeError, Encoded, or_null};
use crate::event::Event;
use crate::wechat::json;

#[derive(Serialize)]
struct CloudEvent<'e> {
    specversion: &'static str,
    id: String,
    source: String,
    r#type: String,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'e str>,
    datacontenttype: &'static str,
    data: serde_json::Value,
}

pub(super) fn encode(event: &Event) -> Result<Encoded, EncodeError> {
    let message = &event.message;
    let mut kind = format!("com.tencent.weixin.mp.{}", or_null(message.msg_type()).unwrap_or("unknown"));
    if let Some(name) = or_null(message.event()) {
        kind.push('.');
        kind.push_str(name);
    }
    let envelope = CloudEvent {
        specversion: "1.0",
        id: event.id.to_string(),
        source: format!("/accounts/{}", event.account),
        r#type: kind,
        time: event.received_at.to_string(),
        subject: or_null(message.from_user()),
        datacontenttype: "application/json",
        data: json::message(&message.root),
    };
    Ok(Encoded {
        query: None,
        content_type: "application/cloudevents+json",
        body: serde_json::to_vec(&envelope)?.into(),
    })
}
