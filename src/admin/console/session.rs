//! Sessions without a table: a cookie that holds who, since when and a random number, sealed by the user's own token.
//!
//! A session outlives a restart, and dies with its token. Who logs out is remembered until the session would have ended.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::admin::caller::User;
use crate::clock::UnixMillis;

/// How long a session lasts.
const LIFE_MS: i64 = 12 * 3_600_000;
/// The most sessions that are remembered as ended; the oldest is forgotten.
const ENDED: usize = 4096;
/// The name of the cookie; over TLS with the prefix by which browsers bind it to this host.
const NAME: &str = "wxrelay_session";
const SECURE_NAME: &str = "__Host-wxrelay_session";

/// Sessions that were ended by their users, with when they would have.
#[derive(Default)]
pub(super) struct EndedSessions(Mutex<VecDeque<(String, i64)>>);

/// A session that a cookie proves.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) user: User,
    /// Random, in hex.
    pub(super) nonce: String,
    ends_at: i64,
}

impl EndedSessions {
    pub(super) fn end(&self, session: &Session) {
        let mut ended = self.0.lock();
        let now = UnixMillis::now().0;
        ended.retain(|(_, until)| *until > now);
        if ended.len() >= ENDED {
            ended.pop_front();
        }
        ended.push_back((session.nonce.clone(), session.ends_at));
    }

    fn holds(&self, nonce: &str) -> bool {
        self.0.lock().iter().any(|(ended, _)| ended == nonce)
    }
}

/// The session of a request, if its cookie is sound.
pub(super) fn find(headers: &HeaderMap, users: &[User], ended: &EndedSessions) -> Option<Session> {
    let value = cookie(headers, SECURE_NAME).or_else(|| cookie(headers, NAME))?;
    let mut parts = value.split('.');
    let (name, issued, nonce, seal) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let user = users.iter().find(|user| *user.name == *name)?;
    let expected = seal_of(user, issued, nonce);
    let is_ours = bool::from(expected.as_bytes().ct_eq(seal.as_bytes())) && parts.next().is_none();
    let (issued, now): (i64, i64) = (issued.parse().ok()?, UnixMillis::now().0);
    let is_fresh = issued <= now.saturating_add(60_000) && now < issued.saturating_add(LIFE_MS);
    let session = Session { user: user.clone(), nonce: nonce.to_owned(), ends_at: issued.saturating_add(LIFE_MS) };
    (is_ours && is_fresh && !ended.holds(nonce)).then_some(session)
}

/// `Set-Cookie` for a new session of the user; `None` if the system gives no random numbers.
pub(super) fn begin(user: &User, is_secure: bool) -> Option<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).ok()?;
    let (issued, nonce) = (UnixMillis::now().0.to_string(), hex(&random));
    let seal = seal_of(user, &issued, &nonce);
    Some(set_cookie(&format!("{}.{issued}.{nonce}.{seal}", user.name), is_secure, LIFE_MS / 1000))
}

/// `Set-Cookie` that removes it.
pub(super) fn end(is_secure: bool) -> String {
    set_cookie("", is_secure, 0)
}

fn set_cookie(value: &str, is_secure: bool, seconds: i64) -> String {
    let (name, secure) = if is_secure { (SECURE_NAME, "; Secure") } else { (NAME, "") };
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}")
}

/// The token that forms of a session carry: who can read it has read a page.
pub(super) fn form_token(key: &[u8], nonce: &str) -> String {
    seal(key, &["form", nonce])
}

fn seal_of(user: &User, issued: &str, nonce: &str) -> String {
    seal(user.token.expose().as_bytes(), &["session", &user.name, issued, nonce])
}

/// HMAC-SHA256 over the parts, in hex.
fn seal(key: &[u8], parts: &[&str]) -> String {
    // A key of any length is accepted.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    mac.update(b"wxrelay console\n");
    for part in parts {
        mac.update(part.as_bytes());
        mac.update(b"\n");
    }
    hex(&mac.finalize().into_bytes())
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(digit).collect()
}

/// The value of a cookie.
pub(super) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Random bytes, for as long as the process runs.
pub(super) fn random_key() -> Arc<[u8]> {
    let mut key = vec![0; 32];
    // Without random numbers no form is accepted, as the key is empty then.
    if getrandom::fill(&mut key).is_err() {
        key.clear();
    }
    key.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::caller::UserRole;
    use crate::secret::Secret;

    fn user(token: &str) -> User {
        User { name: "li".into(), token: Secret::new(token), role: UserRole::Operator }
    }

    fn headers(cookie: &str) -> HeaderMap {
        let value = cookie.split(';').next().unwrap().parse().unwrap();
        HeaderMap::from_iter([(header::COOKIE, value)])
    }

    #[test]
    fn a_session_is_proven_by_its_cookie_until_it_is_ended() {
        let (user, ended) = (user("token-1"), EndedSessions::default());
        let cookie = begin(&user, false).unwrap();
        for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
            assert!(cookie.contains(part), "{cookie}");
        }
        let users = [user.clone()];
        let session = find(&headers(&cookie), &users, &ended).expect("it is sound");
        assert_eq!(&*session.user.name, "li");
        ended.end(&session);
        assert!(find(&headers(&cookie), &users, &ended).is_none());
    }

    #[test]
    fn a_cookie_is_worth_nothing_after_a_change_or_for_another_token() {
        let (user, ended) = (user("token-1"), EndedSessions::default());
        let cookie = begin(&user, true).unwrap();
        assert!(cookie.starts_with("__Host-") && cookie.contains("; Secure"), "{cookie}");
        let users = [user];
        for (from, to) in [("=li.", "=wang."), (".1", ".2"), ("=li.", "=li.9")] {
            let changed = cookie.replacen(from, to, 1);
            assert!(changed != cookie && find(&headers(&changed), &users, &ended).is_none(), "{changed}");
        }
        assert!(find(&headers(&cookie), &[super::tests::user("token-2")], &ended).is_none());
        assert!(find(&headers(&cookie), &users, &ended).is_some());
        let old = format!("li.1000.aa.{}", seal_of(&users[0], "1000", "aa"));
        assert!(find(&headers(&format!("{NAME}={old}")), &users, &ended).is_none(), "it has expired");
    }
}
