//! Keys and modes: a self-test of each account's token and key.
//!
//! Without network: pushes are encrypted as WeChat does and decrypted as the relay does, in every mode that the account
//! has keys for.

use bytes::Bytes;

use super::report::{CheckResult, DoctorCheck};
use crate::cli::simulate::{MessageAddresses, MessageIds, PushKind, salt};
use crate::config::Config;
use crate::wechat::{AesKey, Credentials, Mode, OpenError, Query, QueryError};

const ADDRESSES: MessageAddresses<'_> =
    MessageAddresses { openid: "oDoctor_0000000000000000001", account: "gh_000000000000" };
const REPLY: &str = "<xml><ToUserName><![CDATA[oDoctor]]></ToUserName></xml>";

/// One result for each key, and one for each account's modes.
pub(super) fn check(config: &Config) -> Vec<CheckResult> {
    let mut lines = Vec::new();
    for account in &config.accounts {
        let (of, own) = (format!("accounts.{}", account.name), &account.credentials);
        lines.push(key(&DoctorCheck::new("key", &of), own.aes_key.as_ref(), own.previous_aes_key.is_some()));
        lines.push(modes(&DoctorCheck::new("mode", &of), own));
    }
    for target in config.targets.iter().map(|settings| &settings.target) {
        if let Some(own) = &target.credentials.aes_key {
            lines.push(key(&DoctorCheck::new("key", format!("targets.{}", target.name)), Some(own), false));
        }
    }
    lines
}

/// Keys of another length or with other characters are configuration errors already.
fn key(check: &DoctorCheck, key: Option<&AesKey>, previous: bool) -> CheckResult {
    let previous = if previous { "; the previous one is accepted too" } else { "" };
    match key {
        None => check.ok("none, plaintext mode needs none"),
        Some(key) if key.is_canonical() => check.ok(format!("43 characters{previous}")),
        Some(_) => check.ok(format!(
            "43 characters{previous}; not canonical base64, as three keys in four: WeChat and wxrelay accept it, some \
             decoders (commons-codec from 1.13 on) refuse it"
        )),
    }
}

/// Why a self-test fails.
#[derive(Debug, thiserror::Error)]
enum SelfTestError {
    #[error("the system gives no random bytes")]
    Random(#[from] getrandom::Error),
    #[error("a query that WeChat would send cannot be read")]
    Query(#[from] QueryError),
    #[error("what WeChat would send is refused: {0}")]
    Open(#[from] OpenError),
    #[error("the {0} comes out changed")]
    Changed(&'static str),
    /// A clear push is accepted where only encrypted ones may be.
    #[error("a clear push is accepted")]
    Downgrade,
}

fn modes(check: &DoctorCheck, own: &Credentials) -> CheckResult {
    let mut tried = Vec::new();
    let others = [Mode::Plaintext, Mode::Compatible, Mode::Secure].into_iter().filter(|mode| *mode != own.mode);
    for mode in [own.mode].into_iter().chain(others).filter(|mode| *mode == Mode::Plaintext || own.aes_key.is_some()) {
        if let Err(fault) = self_test(&Credentials { mode, ..own.clone() }) {
            return check.failed(format!("{mode}: {fault}"), "internal error: please report it with this line");
        }
        tried.push(mode.as_str());
    }
    let previous = match (&own.previous_token, &own.previous_aes_key) {
        (None, None) => "",
        (Some(_), None) => ", with the previous token too",
        (None, Some(_)) => ", with the previous key too",
        (Some(_), Some(_)) => ", with the previous token and key too",
    };
    let others = if tried.len() > 1 { format!(" (and {})", tried[1..].join(", ")) } else { String::new() };
    let mode = own.mode;
    let text = format!("{mode}{others}: verification, push and reply pass{previous}");
    check.ok(text)
}

/// Verification, push and reply with each token and key that the account accepts.
fn self_test(own: &Credentials) -> Result<(), SelfTestError> {
    let tokens = [Some(&own.token), own.previous_token.as_ref()].into_iter().flatten();
    for token in tokens {
        for aes_key in [own.aes_key.as_ref(), own.previous_aes_key.as_ref()] {
            if aes_key.is_none() && own.aes_key.is_some() {
                continue;
            }
            let wechat = Credentials {
                token: token.clone(),
                previous_token: None,
                aes_key: aes_key.cloned(),
                previous_aes_key: None,
                ..own.clone()
            };
            exchange(own, &wechat)?;
        }
    }
    Ok(())
}

fn exchange(own: &Credentials, wechat: &Credentials) -> Result<(), SelfTestError> {
    let query = wechat.verification("4375120948345356249", &salt()?);
    if own.verify_url(&Query::parse(&query)?)? != "4375120948345356249" {
        return Err(SelfTestError::Changed("echostr"));
    }
    let clear = PushKind::Text { content: "wxrelay doctor".to_owned() }.clear_xml(ADDRESSES, &MessageIds::now()?);
    let push = wechat.push(&clear, ADDRESSES.openid, &salt()?);
    let opened = own.open(&Query::parse(&push.query)?, &Bytes::from(push.body))?;
    if opened.clear != clear.as_bytes() {
        return Err(SelfTestError::Changed("push"));
    }
    let reply = own.seal_reply(REPLY, opened.manner, &salt()?);
    let read = if own.mode == Mode::Plaintext { reply.into() } else { wechat.open_reply(reply.as_bytes())? };
    if read != REPLY.as_bytes() {
        return Err(SelfTestError::Changed("reply"));
    }
    let stripped = Credentials { mode: Mode::Plaintext, ..wechat.clone() }.push(&clear, "", &salt()?);
    let accepted = own.open(&Query::parse(&stripped.query)?, &Bytes::from(stripped.body)).is_ok();
    if accepted && own.mode != Mode::Plaintext { Err(SelfTestError::Downgrade) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    const KEYS: [&str; 2] =
        ["abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG", "0123456789ABCDEFGabcdefghijklmnopqrstuvwxyz"];

    fn credentials(mode: Mode) -> Credentials {
        Credentials {
            app_id: "wx1".into(),
            token: Secret::new("new"),
            previous_token: Some(Secret::new("old")),
            aes_key: AesKey::parse(KEYS[0]).ok(),
            previous_aes_key: AesKey::parse(KEYS[1]).ok(),
            mode,
        }
    }

    #[test]
    fn every_mode_passes_with_every_token_and_key() {
        for mode in [Mode::Plaintext, Mode::Compatible, Mode::Secure] {
            self_test(&credentials(mode)).unwrap();
        }
        let keyless = Credentials { aes_key: None, previous_aes_key: None, ..credentials(Mode::Plaintext) };
        self_test(&keyless).unwrap();
    }

    #[test]
    fn another_key_or_token_fails() {
        let own = credentials(Mode::Secure);
        let other = Credentials { token: Secret::new("other"), previous_token: None, ..own.clone() };
        assert!(matches!(exchange(&own, &other), Err(SelfTestError::Open(OpenError::Signature))));
        let one_key = Credentials { previous_aes_key: None, ..own.clone() };
        let other = Credentials { aes_key: own.previous_aes_key.clone(), ..own };
        assert!(matches!(exchange(&one_key, &other), Err(SelfTestError::Open(OpenError::Envelope(_)))));
    }
}
