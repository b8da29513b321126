//! Now: is it us, what needs a hand, how are accounts and targets.

use axum::extract::Request;
use axum::response::Response;
use maud::{Markup, html};

use super::chart::{self, Combine, Line};
use super::frame::{Frame, drawing, target_path, text, time};
use crate::admin::checks::{self, Check, shown_span};
use crate::admin::history::{Field, STEP, STEPS};
use crate::admin::target::TargetDetail;
use crate::admin::{AccountOverview, Context, Error, QueueTotals};
use crate::clock::UnixMillis;
use crate::metrics::Subject;

pub(super) async fn page(context: Context, request: Request) -> Result<Response, Error> {
    let frame = Frame::of(&request);
    let (found, now) = (checks::current(&context).await, UnixMillis::now());
    let totals = context.stats.get().await.map(|stats| QueueTotals::new(&stats, context.state.queue.memory()));
    let obstacle = context.obstacle().await;
    let status = (context.state.status)(obstacle, totals.unwrap_or_default()).ok_or(Error::Stopped)?;
    let targets = targets(&context, &frame, now).await;
    let is_well = status.ready && !found.iter().any(|check| check.rule.is_page);
    let verdict = match (is_well, found.is_empty()) {
        (true, true) => frame.say("All is well", "一切正常"),
        (true, false) => frame.say("Running; something needs a hand", "运行中，有事项待处理"),
        (false, _) => frame.say("Not well", "有故障"),
    };
    let body = html! {
        h1 #verdict.bad[!is_well] { (verdict) }
        p {
            (status.not_ready_because.as_deref().unwrap_or(frame.say("Pushes are accepted", "正在接收推送")))
            " · " (frame.say("up", "已运行")) " " (shown_span(status.uptime_seconds as f64))
            " · " (frame.say("configuration", "配置")) " " (status.config_sha256.get(..8).unwrap_or_default())
            " · " (time(now))
        }
        h2 { (frame.say("Needs a hand", "需要处理")) }
        (needs(&frame, &found, now))
        h2 { (frame.say("Accounts", "公众号")) }
        (accounts(&context, &frame, &status.accounts))
        h2 { (frame.say("Targets", "目标")) }
        (targets)
    };
    Ok(frame.page(frame.say("Now", "概览"), &body))
}

fn needs(frame: &Frame, found: &[Check], now: UnixMillis) -> Markup {
    html! {
        ul #needs-a-hand {
            @for check in found {
                li data-id=(check.rule.id) .bad[check.rule.is_page] {
                    span aria-hidden="true" { (if check.rule.is_page { "! " } else { "- " }) }
                    @if !check.subject.is_empty() { strong { (text(&check.subject)) } " " }
                    (text(&check.text()))
                    @if let Some(since) = check.since { " (" (frame.say("for", "已持续")) " " (shown_span(now.since(since).as_secs_f64())) ")" }
                    details { summary { (frame.say("What to do", "处理办法")) } (text(&check.runbook())) }
                }
            }
            @if found.is_empty() { li { (frame.say("Nothing.", "没有。")) } }
        }
    }
}

fn accounts(context: &Context, frame: &Frame, all: &[AccountOverview]) -> Markup {
    html! {
        table #accounts {
            thead { tr {
                th { (frame.say("Name", "名称")) } th { (frame.say("Mode", "模式")) } th { (frame.say("Path", "路径")) }
                th.spark { (frame.say("Pushes, last hour", "近一小时推送")) }
            } }
            tbody {
                @for account in all {
                    tr data-name=(account.name) {
                        td { (account.name) } td { (account.mode) } td { (text(&account.path)) }
                        td { (spark(context, frame, Subject::Account, &account.name)) }
                    }
                }
            }
        }
    }
}

async fn targets(context: &Context, frame: &Frame, now: UnixMillis) -> Markup {
    let names: Vec<String> = match crate::admin::targets::overviews(context, Default::default()).await {
        Ok(all) => all.into_iter().map(|target| target.name).collect(),
        Err(error) => return html! { p role="alert" { (text(&error.to_string())) } },
    };
    let mut rows = Vec::with_capacity(names.len());
    for name in names {
        if let Ok(detail) = TargetDetail::of(context, &name).await {
            rows.push(detail);
        }
    }
    html! {
        table #targets {
            thead { tr {
                th { (frame.say("Name", "名称")) } th { (frame.say("State", "状态")) }
                th.number { (frame.say("Waiting", "待投递")) } th.number { (frame.say("Oldest", "最早")) }
                th.number { (frame.say("Dead", "死信")) } th.number { (frame.say("Expired", "已过期")) }
                th.spark { (frame.say("Deliveries, last hour", "近一小时投递")) }
            } }
            tbody {
                @for target in &rows {
                    @let counts = &target.counts;
                    tr data-name=(counts.name) .bad[target.state == "down"] {
                        td { a href=(target_path(&counts.name)) { (text(&counts.name)) } }
                        td { (state_word(frame, target.state)) }
                        td.number { (counts.counts.pending) }
                        td.number { @if let Some(oldest) = counts.oldest_pending { (shown_span(now.since(oldest).as_secs_f64())) } }
                        td.number { (counts.counts.dead) }
                        td.number { (counts.counts.expired) }
                        td { (spark(context, frame, Subject::Target, &counts.name)) }
                    }
                }
            }
        }
    }
}

/// A state with a sign, as colours alone tell nothing to some.
pub(super) fn state_word(frame: &Frame, state: &str) -> &'static str {
    match state {
        "up" => frame.say("✓ up", "✓ 正常"),
        "down" => frame.say("✗ down", "✗ 故障"),
        "paused" => frame.say("‖ paused", "‖ 已暂停"),
        _ => frame.say("– removed", "– 已移除"),
    }
}

fn spark(context: &Context, frame: &Frame, subject: Subject, name: &str) -> Markup {
    let span = STEP * u32::try_from(STEPS).unwrap_or(u32::MAX);
    let values = chart::minutes(&context.history.values(subject, name, Field::Done, span), Combine::Sum, 1.0);
    let title = frame.say("by the minute, last hour", "近一小时，按分钟");
    drawing(chart::spark(title, &Line { class: "done", name, values }))
}
