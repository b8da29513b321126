//! Login by a token, and logout. The login page shows nothing else, not even the version.

use std::collections::BTreeMap;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use maud::html;

use super::fence::{Fence, Form};
use super::frame::Frame;
use super::see_other;
use super::session::{self, Session};
use crate::admin::{Context, Error, endpoint, guard};

pub(super) async fn page(_: Context, request: Request) -> Result<Response, Error> {
    let query: BTreeMap<String, String> = endpoint::query(&request).unwrap_or_default();
    Ok(login_page(&request, query.get("next").map_or("", String::as_str), None))
}

fn login_page(request: &Request, next: &str, refused: Option<&Error>) -> Response {
    let frame = Frame::bare(request);
    let title = frame.say("Log in", "登录");
    let why = refused.map(|error| match error {
        Error::Token => frame.say("This token is not known.", "令牌不正确。"),
        _ => frame.say("Too many wrong tokens. Wait a minute.", "错误令牌太多，请一分钟后再试。"),
    });
    let mut page = frame.page(
        title,
        &html! {
            form #login method="post" action="/console/login" {
                h1 { (title) }
                @if let Some(why) = why { p role="alert" { (why) } }
                (frame.form_token())
                input type="hidden" name="next" value=(next);
                label for="token" { (frame.say("Token", "令牌")) }
                input #token name="token" type="password" autocomplete="current-password" required autofocus;
                button { (title) }
            }
        },
    );
    if let Some(error) = refused {
        *page.status_mut() = error.status();
    }
    page
}

pub(super) async fn login(_: Context, request: Request) -> Result<Response, Error> {
    let fence = request.extensions().get::<Fence>().cloned().ok_or(Error::Internal)?;
    let form = Form::of(&request);
    let user = match fence.access.login(guard::peer_of(&request), form.get("token").trim()).await {
        Ok(user) => user,
        Err(error) => return Ok(login_page(&request, form.get("next"), Some(&error))),
    };
    let next =
        Some(form.get("next")).filter(|next| next.starts_with("/console/") && !next.contains(['\\', '\r', '\n']));
    let mut answer = see_other(next.unwrap_or("/console/"));
    let cookie = session::begin(&user, is_secure(request.headers())).ok_or(Error::Internal)?;
    answer.headers_mut().insert(header::SET_COOKIE, HeaderValue::from_str(&cookie).map_err(|_| Error::Internal)?);
    tracing::info!(user = &*user.name, "console login");
    Ok(answer)
}

pub(super) async fn logout(_: Context, request: Request) -> Result<Response, Error> {
    if let (Some(fence), Some(session)) = (request.extensions().get::<Fence>(), request.extensions().get::<Session>()) {
        fence.ended.end(session);
    }
    let mut answer = see_other("/console/login");
    for is_secure in [false, true] {
        let cookie = HeaderValue::from_str(&session::end(is_secure)).map_err(|_| Error::Internal)?;
        answer.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(answer)
}

/// Whether the browser came by TLS, as a proxy in front says. Who lies about it gets a cookie that its browser drops.
fn is_secure(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|scheme| scheme.as_bytes().eq_ignore_ascii_case(b"https"))
}
