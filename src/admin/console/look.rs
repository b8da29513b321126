//! Language and colours, kept in cookies, so that the server writes them and nothing flashes.

use std::collections::BTreeMap;

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::see_other;
use crate::admin::{Context, Error, endpoint};

const YEAR: u32 = 365 * 86_400;

pub(super) async fn set(_: Context, request: Request) -> Result<Response, Error> {
    let query: BTreeMap<String, String> = endpoint::query(&request)?;
    let asked = |key: &str| query.get(key).map_or("", String::as_str);
    // Only to a page of ours: a path with one slash at its beginning.
    let back = asked("back");
    let is_ours = back.starts_with("/console/") && !back.contains(['\\', '\r', '\n']);
    let mut answer = see_other(if is_ours { back } else { "/console/" });
    for (key, name, known) in [("lang", "wxrelay_lang", ["en", "zh"]), ("theme", "wxrelay_theme", ["light", "dark"])] {
        if let Some(value) = known.into_iter().find(|value| *value == asked(key))
            && let Ok(cookie) =
                HeaderValue::from_str(&format!("{name}={value}; Path=/console; SameSite=Strict; Max-Age={YEAR}"))
        {
            answer.headers_mut().append(header::SET_COOKIE, cookie);
        }
    }
    Ok(answer)
}
