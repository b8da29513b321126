//! Pushes and attempts as they happen: a list that the script fills from server-sent events.

use axum::extract::Request;
use axum::response::Response;
use maud::html;

use super::frame::Frame;
use crate::admin::{Context, Error, tail as api};

pub(super) async fn page(_: Context, request: Request) -> Result<Response, Error> {
    let frame = Frame::of(&request);
    let title = frame.say("Live", "实时");
    let body = html! {
        h1 { (title) }
        p #live data-missed=(frame.say("missed", "遗漏")) role="status" {
            noscript { (frame.say("This page needs JavaScript. `wxrelay events tail` shows the same.", "本页需要 JavaScript，也可以用 wxrelay events tail 查看。")) }
        }
        div.actions { button #hold type="button" aria-pressed="false" { (frame.say("Pause", "暂停")) } }
        table {
            thead { tr {
                th { (frame.say("Time", "时间")) } th { (frame.say("Kind", "类型")) } th { (frame.say("Account", "公众号")) }
                th { "OpenID" } th { (frame.say("Target", "目标")) } th { (frame.say("Result", "结果")) }
                th { (frame.say("Took", "耗时")) } th { (frame.say("Event", "事件")) }
            } }
            tbody #rows {}
        }
    };
    Ok(frame.page(title, &body))
}

/// The twin of `/api/tail` for a session. OpenIDs are hashes.
pub(super) async fn tail(context: Context, request: Request) -> Result<Response, Error> {
    api::stream(&context, &request, true)
}
