//! One target: state, failures, charts, and what an operator can do about it.

use std::collections::BTreeMap;

use axum::extract::Request;
use axum::response::Response;
use maud::{Markup, html};

use super::chart::{self, Combine, Line};
use super::fence::Form;
use super::frame::{Frame, drawing, target_path, text, time};
use super::now::state_word;
use crate::admin::checks::shown_span;
use crate::admin::endpoint::{self, parameter};
use crate::admin::history::{Field, STEP, STEPS};
use crate::admin::target::{TargetDetail, probe, role};
use crate::admin::{Context, Error, targets};
use crate::clock::UnixMillis;
use crate::metrics::Subject;
use crate::queue::{Sweep, SweepAction};

pub(super) async fn page(context: Context, mut request: Request) -> Result<Response, Error> {
    let name = parameter(&mut request).await?;
    let query: BTreeMap<String, String> = endpoint::query(&request)?;
    let frame = Frame::of(&request);
    let detail = TargetDetail::of(&context, &name).await?;
    if let Some(asked) = query.get("ask").filter(|_| !frame.is_viewer()) {
        return Ok(ask(&frame, &detail, asked));
    }
    let body = html! {
        h1 { (text(&name)) }
        (state(&frame, &detail))
        @if !frame.is_viewer() { (actions(&context, &frame, &detail)) }
        (failures(&frame, &detail))
        (charts(&context, &frame, &name))
    };
    Ok(frame.page(&name, &body))
}

fn state(frame: &Frame, detail: &TargetDetail) -> Markup {
    let (found, now) = (&detail.found, UnixMillis::now());
    let moments = [
        (frame.say("Last success", "上次成功"), found.last_success),
        (frame.say("Last failure", "上次失败"), found.last_failure),
        (frame.say("Next probe", "下次探测"), found.next_probe),
        (frame.say("Next attempt", "下次投递"), found.next_due),
        (frame.say("Gives up the oldest at", "最早的一条放弃于"), detail.gives_up_at()),
    ];
    let counts = detail.counts.counts;
    html! {
        dl {
            dt { (frame.say("State", "状态")) }
            dd #state {
                (state_word(frame, detail.state))
                @if let Some(since) = found.since { " (" (shown_span(now.since(since).as_secs_f64())) ")" }
            }
            @if let Some(facts) = &detail.facts {
                dt { (frame.say("Role, format", "角色、格式")) } dd { (role(facts)) ", " (facts.format) }
            }
            @if let Some(url) = detail.url() { dt { "URL" } dd { (text(&url)) } }
            dt { (frame.say("Waiting", "待投递")) } dd #waiting { (counts.pending) }
            dt { (frame.say("Dead letters", "死信")) } dd #dead { (counts.dead) }
            dt { (frame.say("Delivered", "已投递")) } dd { (counts.delivered) }
            dt { (frame.say("Expired", "已过期")) } dd { (counts.expired) }
            @for (label, moment) in moments {
                @if let Some(moment) = moment { dt { (label) } dd { (time(moment)) } }
            }
        }
    }
}

fn actions(context: &Context, frame: &Frame, detail: &TargetDetail) -> Markup {
    let (name, counts) = (&detail.counts.name, detail.counts.counts);
    let to = target_path(name);
    let others = (context.state.targets)().unwrap_or_default();
    html! {
        div.actions {
            @if detail.facts.is_some() {
                @if detail.state == "paused" { (frame.button(&to, "resume", frame.say("Resume", "恢复投递"), &[])) }
                @else { (frame.button(&to, "pause", frame.say("Pause", "暂停投递"), &[])) }
                (frame.button(&to, "probe", frame.say("Probe", "探测"), &[]))
            }
            @if counts.dead > 0 {
                (frame.button("/console/dead", "retry", &format!("{} {}", frame.say("Retry dead letters:", "重试死信："), counts.dead), &[("target", name)]))
                (frame.button("/console/dead", "drop", &format!("{} {}", frame.say("Drop dead letters:", "丢弃死信："), counts.dead), &[("target", name)]))
            }
            @if counts.pending > 0 {
                (frame.button(&to, "drop-pending", &format!("{} {}", frame.say("Drop what waits:", "丢弃待投递："), counts.pending), &[]))
                form method="post" action=(to) {
                    (frame.form_token())
                    input type="hidden" name="action" value="redirect";
                    label { (frame.say("Move what waits to", "把待投递改投到")) " "
                        select name="to" { @for other in &others { @if other.name != *name { option { (other.name) } } } }
                    }
                    button data-action="redirect" { (frame.say("Redirect", "改投")) }
                }
            }
        }
    }
}

fn failures(frame: &Frame, detail: &TargetDetail) -> Markup {
    html! {
        h2 { (frame.say("Failures of the last hour", "近一小时的失败")) }
        table #failures {
            thead { tr {
                th { (frame.say("Status", "状态码")) } th { (frame.say("Error", "错误")) }
                th.number { (frame.say("Count", "次数")) } th { (frame.say("Last", "最近")) }
            } }
            tbody {
                @for failure in &detail.found.failures {
                    tr {
                        td { @match failure.status { Some(status) => (status), None => "-" } }
                        td { (text(&failure.error)) } td.number { (failure.count) } td { (time(failure.last)) }
                    }
                }
            }
        }
    }
}

fn charts(context: &Context, frame: &Frame, name: &str) -> Markup {
    let span = STEP * u32::try_from(STEPS).unwrap_or(u32::MAX);
    let line = |class, name_of: &'static str, field, combine| Line {
        class,
        name: name_of,
        values: chart::minutes(&context.history.values(Subject::Target, name, field, span), combine, 1.0),
    };
    let attempts = [
        line("done", frame.say("delivered", "成功"), Field::Done, Combine::Sum),
        line("failed", frame.say("failed", "失败"), Field::Second, Combine::Sum),
    ];
    let waiting = [line("waiting", frame.say("waiting", "待投递"), Field::Gauge, Combine::Max)];
    let ends = [frame.say("an hour ago", "一小时前"), frame.say("now", "现在")];
    let titles =
        [frame.say("Attempts by the minute", "每分钟投递次数"), frame.say("Deliveries that wait", "待投递数量")];
    html! {
        h2 { (titles[0]) } (drawing(chart::chart(titles[0], "", ends, &attempts)))
        h2 { (titles[1]) } (drawing(chart::chart(titles[1], "", ends, &waiting)))
    }
}

/// Asks before deliveries are cancelled or moved.
fn ask(frame: &Frame, detail: &TargetDetail, action: &str) -> Response {
    let (name, pending) = (&detail.counts.name, detail.counts.counts.pending);
    let to = target_path(name);
    let (action, to_target) = action.split_once(':').unwrap_or((action, ""));
    let (question, note) = if action == "redirect" {
        (
            format!("{} {pending}: {name} → {to_target}", frame.say("Move what waits:", "改投待投递的事件：")),
            frame.say("They can be moved back while they wait.", "尚未投递的可以再改回来。"),
        )
    } else {
        (
            format!("{} {pending}: {name}", frame.say("Drop what waits:", "丢弃待投递的事件：")),
            frame.say(
                "They are never delivered. This cannot be undone, but by a replay of the events.",
                "这些事件不再投递，无法撤销，只能用重放补救。",
            ),
        )
    };
    frame.confirm(&to, action, &question, note, &[("to", to_target)])
}

pub(super) async fn act(context: Context, mut request: Request) -> Result<Response, Error> {
    let name = parameter(&mut request).await?;
    let (frame, form) = (Frame::of(&request), Form::of(&request));
    targets::expect_known(&context, &name).await?;
    let (to, action, is_sure) = (target_path(&name), form.get("action"), form.get("sure") == "yes");
    let who = frame.caller.as_ref().map(|caller| &*caller.name);
    let done = match action {
        "pause" | "resume" => {
            (context.state.pause)(name.clone(), action == "pause").await.map_err(Error::Store)?;
            tracing::info!(who, action, target = name, "operator action");
            return Ok(super::see_other(&to));
        }
        "probe" => {
            let found = probe(&context, &name).await?;
            let took = found.took.map_or_else(String::new, |took| format!(" ({} ms)", took.as_millis()));
            let remedy = found.remedy.map_or_else(String::new, |remedy| format!(": {remedy}"));
            format!("{}{took}{remedy}", found.text)
        }
        "drop-pending" | "redirect" if !is_sure => {
            let detail = TargetDetail::of(&context, &name).await?;
            let asked = if action == "redirect" { format!("redirect:{}", form.get("to")) } else { action.to_owned() };
            return Ok(ask(&frame, &detail, &asked));
        }
        "drop-pending" => {
            let count = targets::sweep(&context, Sweep::pending(&name, SweepAction::Drop), "cancelled").await?;
            format!("{} {count}", frame.say("Dropped:", "已丢弃："))
        }
        "redirect" => {
            let other = form.get("to");
            targets::expect_configured(&context, other)?;
            if other == name {
                return Err(Error::ToItself);
            }
            let sweep = Sweep::pending(&name, SweepAction::Redirect(other.into()));
            let count = targets::sweep(&context, sweep, "redirected").await?;
            format!("{} {count}", frame.say("Moved:", "已改投："))
        }
        _ => return Err(Error::NoSuchPath),
    };
    tracing::info!(who, action, target = name, "operator action");
    Ok(frame.result(&to, &done))
}
