//! The console: pages for a browser, rendered by the relay. They show and do what the API does, behind the same guard.
//!
//! | route | file | what |
//! |---|---|---|
//! | `GET /console/` | now.rs | what needs a hand, accounts, targets |
//! | `GET`, `POST /console/targets/{name}` | target.rs | one target: state, failures, charts, actions |
//! | `GET`, `POST /console/dead` | dead.rs | dead letters by target, retried or dropped |
//! | `GET /console/events` | events.rs | events by filter, newest first |
//! | `GET`, `POST /console/events/{id}` | event.rs | one event with every attempt; replay |
//! | `GET /console/live`, `/console/tail` | live.rs | pushes and attempts as they happen |
//! | `GET`, `POST /console/login`, `POST /console/logout` | login.rs | a session for a token |
//! | `GET /console/look` | look.rs | language and colours, kept in cookies |
//!
//! Invariants: every page passes `fence.rs` (who sent it, from which page, who is it); a session opens no route of the
//! API; texts of others are drawn by `frame::text` alone, never as markup, in a URL or in a script; nothing needs
//! JavaScript but the live page; style and script are files, so the policy for content has no exceptions.

mod chart;
mod dead;
mod event;
mod events;
mod fence;
mod frame;
mod live;
mod login;
mod look;
mod now;
mod session;
mod target;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::admission::{self, Admission};
use super::endpoint::{Endpoint, Work, endpoint};
use super::guard::AccessControl;
use super::{ACTION_DEADLINE, API_SLOTS, API_WAITING, Context, Error};

use fence::Fence;
use frame::Frame;

/// As `endpoint!`, and an error becomes a page.
macro_rules! shown {
    ($handler:path) => {
        Endpoint(|context, request| Box::pin(show(Frame::of(&request), Box::pin($handler(context, request)))))
    };
}

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
const SCRIPT: &str = include_str!("app.js");
const STYLE: &str = include_str!("style.css");

/// The routes under `/console/`, and `/`, which leads there.
pub(super) fn routes(access: &AccessControl, hosts: &[String]) -> Router<Context> {
    let fence = Fence::new(access.clone(), hosts);
    // Of its own, outside the fence, which reads forms: a client that sends no body uses up no slot of the API.
    let admission = Admission::new(API_SLOTS, API_WAITING, ACTION_DEADLINE);
    let admission = || middleware::from_fn_with_state(admission.clone(), admission::admit);
    let pages = Router::new()
        .route("/console/", get(shown!(now::page)))
        .route("/console/targets/{name}", get(shown!(target::page)).post(shown!(target::act)))
        .route("/console/dead", get(shown!(dead::page)).post(shown!(dead::act)))
        .route("/console/events", get(shown!(events::page)))
        .route("/console/events/{id}", get(shown!(event::page)).post(shown!(event::act)))
        .route("/console/live", get(shown!(live::page)))
        .route("/console/tail", get(endpoint!(live::tail)))
        .route("/console/logout", get(shown!(login::page)).post(shown!(login::logout)))
        .route("/console/look", get(shown!(look::set)))
        .route_layer(middleware::from_fn_with_state(fence.clone(), fence::admit))
        .route_layer(admission());
    let login = Router::new()
        .route("/console/login", get(shown!(login::page)).post(shown!(login::login)))
        .route_layer(middleware::from_fn_with_state(fence, fence::admit_to_login))
        .route_layer(admission());
    pages
        .merge(login)
        .route("/", get(endpoint!(lead)))
        .route("/console", get(endpoint!(lead)))
        .route("/console/app.js", get(endpoint!(script)))
        .route("/console/style.css", get(endpoint!(style)))
        // Browsers ask for it by themselves, and complain of anything but success.
        .route("/favicon.ico", get(endpoint!(no_icon)))
        .layer(middleware::map_response(harden))
}

/// The page, or one that says why there is none.
async fn show(frame: Frame, page: Work<Result<Response, Error>>) -> Result<Response, Error> {
    Ok(page.await.unwrap_or_else(|error| frame.failure(error.status(), &error.to_string())))
}

/// Leads to the console.
async fn lead(_: Context, _: Request) -> Result<Response, Error> {
    Ok(see_other("/console/"))
}

async fn no_icon(_: Context, _: Request) -> Result<Response, Error> {
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn script(_: Context, _: Request) -> Result<Response, Error> {
    Ok(asset("text/javascript; charset=utf-8", SCRIPT))
}

async fn style(_: Context, _: Request) -> Result<Response, Error> {
    Ok(asset("text/css; charset=utf-8", STYLE))
}

/// The query by which pages name a file: another one for other content.
fn version(file: &str) -> String {
    format!("?v={:08x}", crc32fast::hash(file.as_bytes()))
}

/// A file that browsers keep.
fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")], text)
        .into_response()
}

/// Leads the browser to another page, by GET.
fn see_other(path: &str) -> Response {
    let mut answer = StatusCode::SEE_OTHER.into_response();
    // Paths here are ours, or percent-encoded.
    if let Ok(path) = HeaderValue::from_str(path) {
        answer.headers_mut().insert(header::LOCATION, path);
    }
    answer
}

async fn harden(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    answer
}
