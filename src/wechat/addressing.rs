//! Whom a reply is for: the names that a target wrote, compared with those of the push.
//!
//! Invariant: a reply that is sent goes from the push's account to its user, and one that may be another user's is not
//! sent. Handlers forget to swap the names (binarywang/WxJava #3597), write their AppID in place of the original ID, or
//! leave names out; WeChat then shows an error to the user.

use super::message::{Message, trim};
use super::reply::{Reply, ReplyError, clean_name};

/// Before the original ID of every account.
const ORIGINAL_ID: &str = "gh_";

/// Whom a name in a reply is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    Nobody,
    /// The sender of the push.
    User,
    /// Its receiver, by the original ID.
    Account,
    AppId,
    /// The original ID of another account.
    OtherAccount,
    /// What may be another user.
    Other,
}

impl Reply {
    /// Addresses the reply to the sender of the push, whose account has this AppID: what is left out here, rendering
    /// takes from the push. Returns what was wrong, in a few words without the names; `None` where nothing was, or where
    /// `may_omit` allows that both names are missing.
    ///
    /// # Errors
    /// [`ReplyError::OtherUser`] if it may be for another user.
    pub fn address(&mut self, push: &Message, app_id: &str, may_omit: bool) -> Result<Option<String>, ReplyError> {
        let named = |name: &Option<String>| {
            named(name.as_deref().and_then(clean_name).as_deref().unwrap_or_default(), push, app_id)
        };
        let (to, from) = (named(&self.to_user), named(&self.from_user));
        // A push without a sender, or without a receiver, says nothing about the names in its reply.
        if trim(push.from_user()).is_empty() {
            return Ok(None);
        }
        if to == Named::Other || (from == Named::Other && (to != Named::User || self.is_from_a_user(push))) {
            return Err(ReplyError::OtherUser);
        }
        let unknown_account = trim(push.to_user()).is_empty() && matches!(from, Named::Other | Named::OtherAccount);
        let mut wrong = Vec::new();
        wrong.extend(fault("ToUserName", to, Named::User, may_omit));
        self.to_user = None;
        if !unknown_account {
            wrong.extend(fault("FromUserName", from, Named::Account, may_omit));
            self.from_user = None;
        }
        Ok((!wrong.is_empty()).then(|| wrong.join(", ")))
    }

    /// Whether its sender is named like a user: all OpenIDs of an account begin alike.
    fn is_from_a_user(&self, push: &Message) -> bool {
        let first = |name: &str| trim(name).as_bytes().first().copied();
        self.from_user.as_deref().and_then(clean_name).and_then(|name| first(&name)) == first(push.from_user())
    }
}

fn named(name: &str, push: &Message, app_id: &str) -> Named {
    match name {
        "" => Named::Nobody,
        _ if name == trim(push.from_user()) => Named::User,
        _ if name == trim(push.to_user()) => Named::Account,
        _ if name == app_id => Named::AppId,
        _ if name.starts_with(ORIGINAL_ID) => Named::OtherAccount,
        _ => Named::Other,
    }
}

/// What is wrong with a name, if it is not the expected one.
fn fault(element: &str, named: Named, expected: Named, may_omit: bool) -> Option<String> {
    let is = match named {
        _ if named == expected => return None,
        Named::Nobody if may_omit => return None,
        Named::Nobody => "was missing",
        Named::User => "was the user",
        Named::Account => "was the account",
        Named::AppId => "was the AppID",
        Named::OtherAccount => "was another account",
        Named::Other => "was unknown",
    };
    Some(format!("{element} {is}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wechat::ReplyBody;

    const APP_ID: &str = "wx0123456789abcdef";

    fn push() -> Message {
        Message::parse(b"<xml><ToUserName>gh_1</ToUserName><FromUserName>o_1</FromUserName></xml>").unwrap()
    }

    fn reply(to: &str, from: &str) -> Reply {
        let given = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let body = ReplyBody::Text { content: "hi".to_owned() };
        Reply { to_user: given(to), from_user: given(from), ..Reply::new(body) }
    }

    /// What was wrong, or `None` where the reply is not for the user of the push.
    fn addressed(to: &str, from: &str) -> Option<String> {
        let mut reply = reply(to, from);
        let wrong = reply.address(&push(), APP_ID, false).ok()?;
        let rendered = reply.render(&push(), 1);
        assert!(rendered.contains("<ToUserName><![CDATA[o_1]]>"), "{to} {from}: {rendered}");
        assert!(rendered.contains("<FromUserName><![CDATA[gh_1]]>"), "{to} {from}: {rendered}");
        Some(wrong.unwrap_or_default())
    }

    #[test]
    fn what_can_only_be_for_the_user_is_corrected() {
        for (to, from, wrong) in [
            ("o_1", "gh_1", ""),
            (" o_1\n", "\tgh_1", ""),
            ("gh_1", "o_1", "ToUserName was the account, FromUserName was the user"),
            ("o_1", APP_ID, "FromUserName was the AppID"),
            (APP_ID, "o_1", "ToUserName was the AppID, FromUserName was the user"),
            ("", "", "ToUserName was missing, FromUserName was missing"),
            ("\u{1}", "gh_1", "ToUserName was missing"),
            ("o_1", "", "FromUserName was missing"),
            ("o_1", "o_1", "FromUserName was the user"),
            ("gh_1", "gh_1", "ToUserName was the account"),
            ("o_1", "gh_2", "FromUserName was another account"),
            ("gh_2", "o_1", "ToUserName was another account, FromUserName was the user"),
            ("o_1", "myshop", "FromUserName was unknown"),
        ] {
            assert_eq!(addressed(to, from).as_deref(), Some(wrong), "{to} {from}");
        }
    }

    #[test]
    fn what_may_be_for_another_user_is_refused() {
        for (to, from) in [
            ("o_2", "gh_1"),
            ("o_2", "o_1"),
            ("o_2", ""),
            ("gh_1", "o_2"),
            (APP_ID, "o_2"),
            ("", "o_2"),
            ("o_1", "o_2"),
            ("O_1", "gh_1"),
            ("myshop", "o_1"),
        ] {
            assert_eq!(addressed(to, from), None, "{to} {from}");
        }
    }

    #[test]
    fn json_may_leave_both_names_out() {
        assert!(matches!(reply("", "").address(&push(), APP_ID, true), Ok(None)));
        let wrong = reply("gh_1", "").address(&push(), APP_ID, true).unwrap();
        assert_eq!(wrong.as_deref(), Some("ToUserName was the account"));
    }

    #[test]
    fn a_push_without_names_leaves_them_to_the_reply() {
        let nameless = Message::parse(b"<xml><MsgType>event</MsgType></xml>").unwrap();
        assert!(matches!(reply("o_2", "gh_1").address(&nameless, APP_ID, false), Ok(None)));
        let without_account = Message::parse(b"<xml><FromUserName>o_1</FromUserName></xml>").unwrap();
        let mut reply = reply("o_1", "gh_1");
        assert!(matches!(reply.address(&without_account, APP_ID, false), Ok(None)));
        assert_eq!(reply.from_user.as_deref(), Some("gh_1"));
    }

    proptest! {
        /// Whatever the names: what is sent goes from the account to the user, and no other user's name is corrected.
        #[test]
        fn a_reply_goes_to_the_user_or_nowhere(to in "(o_|gh_)?[a-z0-9_]{0,4}", from in "(o_|gh_)?[a-z0-9_]{0,4}") {
            let outcome = addressed(&to, &from);
            if to.starts_with("o_") && to != "o_1" {
                prop_assert_eq!(outcome, None);
            }
        }
    }
}
