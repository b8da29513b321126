//! One event: the push, every attempt with its answer, the reply. OpenID and texts are shown when asked for, which is
//! logged.

use axum::extract::Request;
use axum::response::Response;
use maud::{Markup, html};

use super::fence::Form;
use super::frame::{Frame, folded, target_path, text, time};
use crate::admin::caller::{hashed, hide_personal};
use crate::admin::endpoint::parameter;
use crate::admin::replay::replay_event;
use crate::admin::{Context, Error};
use crate::event::EventId;
use crate::queue::view::{DeliveryDetail, EventDetail};

pub(super) async fn page(context: Context, mut request: Request) -> Result<Response, Error> {
    let id: EventId = parameter(&mut request).await?.parse()?;
    let frame = Frame::of(&request);
    show(&context, &frame, id, false).await
}

/// `is_clear`: with OpenID and texts.
async fn show(context: &Context, frame: &Frame, id: EventId, is_clear: bool) -> Result<Response, Error> {
    let found = context.inspect(move |store| async move { store.event(id).await }).await?;
    let mut event = found.ok_or(Error::NoSuchEvent)?;
    if frame.is_viewer() {
        hide_personal(&mut event);
    }
    let path = format!("/console/events/{id}");
    let kind = if event.event.is_empty() { &event.msg_type } else { &event.event };
    let openid = if is_clear || frame.is_viewer() { event.from.clone() } else { hashed(&event.from) };
    let body = html! {
        h1 { (text(kind)) " " small { (id.to_string()) } }
        dl {
            dt { (frame.say("Received", "接收时间")) } dd { (time(event.received_at)) }
            dt { (frame.say("Account", "公众号")) } dd { (text(&event.account)) " (" (event.mode) ")" }
            @if !event.event_key.is_empty() { dt { "EventKey" } dd { (text(&event.event_key)) } }
            dt { "OpenID" } dd #openid { (text(&openid)) }
            @if let Some(sealed) = &event.sealed { dt { (frame.say("Left out", "未显示")) } dd { (text(sealed)) } }
        }
        @if !frame.is_viewer() {
            div.actions {
                @if !is_clear { (frame.button(&path, "show", frame.say("Show OpenID and text", "显示 OpenID 和正文"), &[])) }
                (frame.button(&path, "replay", frame.say("Replay to all targets", "向所有目标重放"), &[]))
            }
        }
        (timeline(frame, &event, &path))
        @if is_clear {
            h2 { (frame.say("Text", "正文")) }
            (folded(&format!("{} B", event.text.len()), &event.text))
            h2 { (frame.say("Reply", "回复")) }
            @match &event.reply {
                Some(reply) => (folded(&format!("{} B", reply.len()), reply)),
                None => p { (frame.say("None: answered `success`.", "没有回复，应答的是 success。")) },
            }
        }
    };
    Ok(frame.page(&format!("{kind} {id}"), &body))
}

fn timeline(frame: &Frame, event: &EventDetail, path: &str) -> Markup {
    let attempts = || event.deliveries.iter().flat_map(|delivery| &delivery.attempts);
    let longest = attempts().map(|attempt| attempt.duration_ms).fold(1.0, f64::max);
    html! {
        h2 { (frame.say("Deliveries", "投递")) }
        div #timeline {
            @for delivery in &event.deliveries {
                h3 {
                    a href=(target_path(&delivery.target)) { (text(&delivery.target)) } ": " (delivery.state.name())
                    @if let Some(due) = delivery.due { ", " (frame.say("next attempt", "下次投递")) " " (time(due)) }
                }
                @if !frame.is_viewer() {
                    (frame.button(path, "replay", frame.say("Replay to this target", "向此目标重放"), &[("target", &delivery.target)]))
                }
                (attempts_of(frame, delivery, longest))
            }
        }
    }
}

fn attempts_of(frame: &Frame, delivery: &DeliveryDetail, longest: f64) -> Markup {
    html! {
        table data-name=(delivery.target) {
            thead { tr {
                th { (frame.say("Attempt", "次")) } th { (frame.say("Began", "开始")) } th { (frame.say("Took", "耗时")) }
                th { (frame.say("Status", "状态码")) } th { (frame.say("Result", "结果")) }
            } }
            tbody {
                @for attempt in &delivery.attempts {
                    tr {
                        td { (attempt.number) }
                        td { (time(attempt.at)) }
                        td {
                            meter min="0" max=(longest) value=(attempt.duration_ms) aria-label=(frame.say("duration", "耗时")) {}
                            " " (format!("{:.0} ms", attempt.duration_ms))
                        }
                        td { @match attempt.status { Some(status) => (status), None => "-" } }
                        td {
                            @if let Some(error) = &attempt.error { (text(error)) }
                            @if let Some(answer) = &attempt.answer { (folded(frame.say("Answer", "应答"), answer)) }
                        }
                    }
                }
            }
        }
    }
}

pub(super) async fn act(context: Context, mut request: Request) -> Result<Response, Error> {
    let id: EventId = parameter(&mut request).await?.parse()?;
    let (frame, form) = (Frame::of(&request), Form::of(&request));
    let who = frame.caller.as_ref().map(|caller| &*caller.name);
    let (action, target) = (form.get("action"), Some(form.get("target")).filter(|target| !target.is_empty()));
    let note = |action| tracing::info!(who, action, event = %id, target, "operator action");
    match action {
        "show" => {
            let page = show(&context, &frame, id, true).await?;
            note("show");
            Ok(page)
        }
        "replay" => {
            let count = replay_event(&context, id, target).await?;
            note("replay");
            let text = format!("{} {count}", frame.say("Deliveries that wait again:", "重新进入待投递的条数："));
            Ok(frame.result(&format!("/console/events/{id}"), &text))
        }
        _ => Err(Error::NoSuchPath),
    }
}
