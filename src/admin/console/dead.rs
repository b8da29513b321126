//! Dead letters: by target first, then letter by letter; retried or dropped, all of a target or those that are selected.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::Request;
use axum::response::Response;
use maud::{Markup, html};

use super::fence::Form;
use super::frame::{Frame, percent, target_path, text, time};
use crate::admin::{Context, Error, endpoint, targets};
use crate::event::EventId;
use crate::queue::view::DeadLetter;
use crate::queue::{Sweep, SweepAction};

const PATH: &str = "/console/dead";
/// Letters of a page.
const PAGE: usize = 50;

pub(super) async fn page(context: Context, request: Request) -> Result<Response, Error> {
    let frame = Frame::of(&request);
    let query: BTreeMap<String, String> = endpoint::query(&request)?;
    let target = query.get("target").filter(|target| !target.is_empty()).cloned();
    let before: Option<EventId> = query.get("cursor").map(|cursor| cursor.parse()).transpose()?;
    let all = targets::overviews(&context, BTreeSet::new()).await?;
    let groups: Vec<(&str, u64)> =
        all.iter().filter(|one| one.counts.dead > 0).map(|one| (&*one.name, one.counts.dead)).collect();
    let wanted = target.clone();
    let mut letters =
        context.inspect(move |store| async move { store.dead(wanted.as_deref(), PAGE + 1, before).await }).await?;
    let more = letters.len() > PAGE;
    letters.truncate(PAGE);
    let next = letters.last().filter(|_| more).map(|last| last.id.to_string());
    let title = frame.say("Dead letters", "死信");
    let body = html! {
        h1 { (title) }
        p { (frame.say(
            "What was given up after the last attempt. It is kept until somebody retries or drops it.",
            "最后一次投递失败后放弃的事件，一直保留到有人重试或丢弃为止。",
        )) }
        (by_target(&frame, &groups))
        @if !letters.is_empty() {
            h2 { @match &target { Some(target) => (text(target)), None => (frame.say("All letters", "全部死信")) } }
            (list(&frame, &letters, target.as_deref()))
        }
        @if let Some(next) = next {
            p { a rel="next" href={ (PATH) "?target=" (percent(target.as_deref().unwrap_or_default())) "&cursor=" (next) } { (frame.say("Older letters", "更早的死信")) } }
        }
    };
    Ok(frame.page(title, &body))
}

fn by_target(frame: &Frame, groups: &[(&str, u64)]) -> Markup {
    html! {
        table #groups {
            thead { tr {
                th { (frame.say("Target", "目标")) } th.number { (frame.say("Letters", "死信数")) }
                @if !frame.is_viewer() { th { (frame.say("Actions", "操作")) } }
            } }
            tbody {
                @for (target, count) in groups {
                    tr data-name=(target) {
                        td { a href={ (PATH) "?target=" (percent(target)) } { (text(target)) } }
                        td.number { (count) }
                        @if !frame.is_viewer() {
                            td { div.actions {
                                (frame.button(PATH, "retry", &format!("{} {count}", frame.say("Retry", "重试")), &[("target", target)]))
                                (frame.button(PATH, "drop", &format!("{} {count}", frame.say("Drop", "丢弃")), &[("target", target)]))
                            } }
                        }
                    }
                }
                @if groups.is_empty() { tr { td colspan="3" { (frame.say("None.", "没有死信。")) } } }
            }
        }
    }
}

/// `target`: whose letters these are; without it none can be selected, as an action is on one target.
fn list(frame: &Frame, letters: &[DeadLetter], target: Option<&str>) -> Markup {
    let chooses = target.filter(|_| !frame.is_viewer());
    html! {
        form method="post" action=(PATH) {
            (frame.form_token())
            @if let Some(target) = chooses { input type="hidden" name="target" value=(target); }
            table #letters {
                thead { tr {
                    @if chooses.is_some() { th { span.unseen { (frame.say("Selected", "选择")) } } }
                    th { (frame.say("Event", "事件")) } th { (frame.say("Kind", "类型")) } th { (frame.say("Target", "目标")) }
                    th { (frame.say("Status", "状态码")) } th { (frame.say("Error", "错误")) } th { (frame.say("Given up", "放弃时间")) }
                } }
                tbody {
                    @for letter in letters {
                        @let id = letter.id.to_string();
                        tr data-id=(id) {
                            @if chooses.is_some() { td { input type="checkbox" name="id" value=(id) aria-label=(id); } }
                            td { a href={ "/console/events/" (id) } { (id) } }
                            td { (text(if letter.event.is_empty() { &letter.msg_type } else { &letter.event })) }
                            td { a href=(target_path(&letter.target)) { (text(&letter.target)) } }
                            td { @match letter.status { Some(status) => (status), None => "-" } }
                            td { (text(letter.error.as_deref().unwrap_or("-"))) }
                            td { @if let Some(at) = letter.ended_at { (time(at)) } }
                        }
                    }
                }
            }
            @if chooses.is_some() {
                div.actions {
                    button name="action" value="retry" data-action="retry" { (frame.say("Retry the selected", "重试所选")) }
                    button name="action" value="drop" data-action="drop" { (frame.say("Drop the selected", "丢弃所选")) }
                }
            }
        }
    }
}

/// Retries or drops all of a target, or those that are selected.
pub(super) async fn act(context: Context, request: Request) -> Result<Response, Error> {
    let (frame, form) = (Frame::of(&request), Form::of(&request));
    let (target, action) = (form.get("target"), form.get("action"));
    targets::expect_known(&context, target).await?;
    let texts: Vec<&str> = form.all("id").collect();
    let ids: Vec<EventId> = texts.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
    let selected = Some(ids).filter(|ids| !ids.is_empty());
    let (sweep_action, fate) = match action {
        "retry" => (SweepAction::Replay, "revived"),
        "drop" => (SweepAction::Drop, "cancelled"),
        _ => return Err(Error::NoSuchPath),
    };
    let sweep = Sweep::dead(target, selected, sweep_action);
    let back = format!("{PATH}?target={}", percent(target));
    if form.get("sure") != "yes" {
        let counted = sweep.clone();
        let count = context.inspect(move |store| async move { store.count(&counted, None).await }).await?;
        let fields: Vec<_> = texts.iter().map(|id| ("id", *id)).chain([("target", target)]).collect();
        let (question, note) = match action {
            "retry" => (
                format!("{} {count}: {target}", frame.say("Retry dead letters:", "重试死信：")),
                frame.say(
                    "They wait again, and the target gets them at its own pace.",
                    "它们重新进入待投递，按目标的速度投递。",
                ),
            ),
            _ => (
                format!("{} {count}: {target}", frame.say("Drop dead letters:", "丢弃死信：")),
                frame.say(
                    "They are never delivered. This cannot be undone, but by a replay of the events.",
                    "这些事件不再投递，无法撤销，只能用重放补救。",
                ),
            ),
        };
        return Ok(frame.confirm(PATH, action, &question, note, &fields));
    }
    let count = targets::sweep(&context, sweep, fate).await?;
    tracing::info!(who = frame.caller.as_ref().map(|caller| &*caller.name), action, target, count, "operator action");
    let done = if action == "retry" {
        frame.say("They wait again:", "已重新进入待投递：")
    } else {
        frame.say("Dropped:", "已丢弃：")
    };
    Ok(frame.result(&back, &format!("{done} {count}")))
}
