//! Events by filter, newest first. A filter is in the page's address, so it can be kept and sent.

use std::collections::BTreeMap;

use axum::extract::Request;
use axum::response::Response;
use maud::{Markup, html};

use super::frame::{Frame, percent, target_path, text, time};
use super::see_other;
use crate::admin::caller::{hashed, hide_sender};
use crate::admin::events::{Filters, find};
use crate::admin::{Context, Error, EventPage, endpoint};
use crate::alarm::Alarm;
use crate::clock::UnixMillis;
use crate::escape;
use crate::event::EventId;
use crate::queue::DeliveryState;

const PATH: &str = "/console/events";
/// The parameters of a filter, as the API has them.
const FILTERS: [&str; 7] = ["account", "event", "from", "target", "state", "since", "until"];

pub(super) async fn page(context: Context, request: Request) -> Result<Response, Error> {
    let frame = Frame::of(&request);
    let mut query: BTreeMap<String, String> = endpoint::query(&request)?;
    query.retain(|_, value| !value.is_empty());
    if let Some(sought) = query.remove("q") {
        let sought = sought.trim();
        if sought.parse::<EventId>().is_ok() {
            return Ok(see_other(&format!("{PATH}/{sought}")));
        }
        // A line of WeChat's alarm names a user, a time, or both; anything else is an OpenID.
        let alarm = Alarm::parse(sought);
        let from = if alarm.names_a_push() { alarm.openid.as_deref().unwrap_or_default() } else { sought };
        let mut path = format!("{PATH}?from={}", percent(from));
        if let Some((since, until)) = alarm.window() {
            path = format!("{path}&since={}&until={}", percent(&since.to_string()), percent(&until.to_string()));
        }
        return Ok(see_other(&path));
    }
    let given = |key: &str| query.get(key).cloned();
    let filters = Filters {
        account: given("account"),
        event: given("event"),
        from: given("from"),
        target: given("target"),
        state: given("state"),
        since: given("since"),
        until: given("until"),
        cursor: given("cursor"),
        ..Filters::default()
    };
    let title = frame.say("Events", "事件");
    let found = match filters.parse(UnixMillis::now()) {
        Ok(filter) if filter.from.is_some() && frame.is_viewer() => Err(Error::Viewer),
        Ok(filter) => find(&context, filter).await,
        Err(error) => Err(error),
    };
    let body = html! {
        h1 { (title) }
        (form(&frame, &query))
        @match found {
            Ok(mut page) => {
                @if frame.is_viewer() { @let () = page.events.iter_mut().for_each(hide_sender); }
                (list(&frame, &page))
                @if let Some(cursor) = &page.cursor {
                    p { a rel="next" href={ (PATH) "?" (kept(&query)) "cursor=" (cursor) } { (frame.say("Older events", "更早的事件")) } }
                }
            }
            Err(error) => { p role="alert" { (text(&error.to_string())) } }
        }
    };
    Ok(frame.page(title, &body))
}

/// The filter, for the address of the next page.
fn kept(query: &BTreeMap<String, String>) -> String {
    let pairs = FILTERS.iter().filter_map(|key| Some(format!("{key}={}&", percent(query.get(*key)?))));
    pairs.collect()
}

fn form(frame: &Frame, query: &BTreeMap<String, String>) -> Markup {
    let labels = [
        frame.say("Account", "公众号"),
        frame.say("Event or type", "事件或类型"),
        "OpenID",
        frame.say("Target", "目标"),
        frame.say("State", "状态"),
        frame.say("Since", "起始"),
        frame.say("Until", "截止"),
    ];
    let value = |key: &str| escape::line(query.get(key).map_or("", String::as_str));
    html! {
        form.filter action=(PATH) {
            @for (key, label) in FILTERS.iter().zip(labels) {
                label { (label)
                    @if *key == "state" {
                        select name="state" {
                            option value="" { (frame.say("any", "不限")) }
                            @for state in DeliveryState::ALL { option selected[state.name() == value("state")] { (state.name()) } }
                        }
                    } @else {
                        input name=(key) value=(value(key)) maxlength="200"
                            placeholder=[key.ends_with("since").then_some("2h")];
                    }
                }
            }
            button { (frame.say("Filter", "筛选")) }
        }
    }
}

fn list(frame: &Frame, page: &EventPage) -> Markup {
    html! {
        table #events {
            thead { tr {
                th { (frame.say("Received", "接收时间")) } th { (frame.say("Event", "事件")) } th { (frame.say("Kind", "类型")) }
                th { (frame.say("Account", "公众号")) } th { "OpenID" } th { (frame.say("Deliveries", "投递")) }
            } }
            tbody {
                @for event in &page.events {
                    @let id = event.id.to_string();
                    tr data-id=(id) {
                        td { (time(event.received_at)) }
                        td { a href={ (PATH) "/" (id) } { (id) } }
                        td { (text(if event.event.is_empty() { &event.msg_type } else { &event.event })) }
                        td { (text(&event.account)) }
                        td { (text(&if frame.is_viewer() { event.from.clone() } else { hashed(&event.from) })) }
                        td { @for delivery in &event.deliveries {
                            a href=(target_path(&delivery.target)) { (text(&delivery.target)) } " " (delivery.state.name()) " "
                        } }
                    }
                }
                @if page.events.is_empty() { tr { td colspan="6" { (frame.say("None.", "没有事件。")) } } }
            }
        }
    }
}
