//! Who sends a request, and what the role allows.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use serde_json::json;

use super::{Context, Error, endpoint};
use crate::queue::{EventDetail, EventSummary};
use crate::secret::Secret;
use crate::telemetry::{self, OpenIds};

/// The name of the holder of `admin.token`.
pub const ADMIN: &str = "admin";
/// The name of every caller where no token is needed.
const LOCAL: &str = "this machine";

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserRole {
    /// Everything.
    Operator,
    /// Read, but no OpenID, text, answer or reply.
    Viewer,
}

/// `[admin.users.NAME]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: Arc<str>,
    pub token: Secret,
    pub role: UserRole,
}

/// Who sent a request.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) name: Arc<str>,
    pub(super) role: UserRole,
}

impl Caller {
    /// Every user of this machine: there is no token.
    pub(super) fn local() -> Self {
        Self { name: LOCAL.into(), role: UserRole::Operator }
    }

    /// The caller that the guard found; without one nothing personal is shown.
    pub(super) fn of(request: &Request) -> Self {
        request.extensions().get().cloned().unwrap_or(Self { name: LOCAL.into(), role: UserRole::Viewer })
    }

    pub(super) fn is_local(&self) -> bool {
        *self.name == *LOCAL
    }

    pub(super) fn is_viewer(&self) -> bool {
        self.role == UserRole::Viewer
    }
}

pub(super) async fn me(_: Context, request: Request) -> Result<Response, Error> {
    let Caller { name, role } = Caller::of(&request);
    let role = match role {
        UserRole::Operator => "operator",
        UserRole::Viewer => "viewer",
    };
    endpoint::json(&json!({ "name": &*name, "role": role }))
}

/// Leaves out of an event what a viewer may not see.
pub(super) fn hide_personal(event: &mut EventDetail) {
    event.from = hashed(&event.from);
    event.text.clear();
    event.reply = None;
    event.deliveries.iter_mut().flat_map(|delivery| &mut delivery.attempts).for_each(|attempt| attempt.answer = None);
}

/// The same of a line of a list.
pub(super) fn hide_sender(event: &mut EventSummary) {
    event.from = hashed(&event.from);
}

/// An OpenID as its hash.
pub(super) fn hashed(openid: &str) -> String {
    telemetry::openid(OpenIds::Hash, openid).into_owned()
}
