//! Keys and modes: what an account's token and key are good for, tried against themselves.
//!
//! No network: pushes are sealed as WeChat would and opened as the relay would, in every mode that there are keys for.

use bytes::Bytes;

use super::report::{Check, Line};
use crate::cli::simulate::{Fresh, Kind, Parties, salt};
use crate::config::Config;
use crate::wechat::{AesKey, Credentials, Mode, OpenError, Query, QueryError};

const PARTIES: Parties<'_> = Parties { openid: "oDoctor_0000000000000000001", account: "gh_000000000000" };
const REPLY: &str = "<xml><ToUserName><![CDATA[oDoctor]]></ToUserName></xml>";

/// A line for every key, and one for every account's modes.
pub(super) fn check(config: &Config) -> Vec<Line> {
    let mut lines = Vec::new();
    for account in &config.accounts {
        let (of, own) = (format!("accounts.{}", account.name), &account.credentials);
        lines.push(key(&Check::new("key", &of), own.aes_key.as_ref(), own.previous_aes_key.is_some()));
        lines.push(modes(&Check::new("mode", &of), own));
    }
    for target in config.targets.iter().map(|settings| &settings.target) {
        if let Some(own) = &target.credentials.aes_key {
            lines.push(key(&Check::new("key", format!("targets.{}", target.name)), Some(own), false));
        }
    }
    lines
}

/// Keys of another length or with other characters are errors of the configuration already.
fn key(check: &Check, key: Option<&AesKey>, previous: bool) -> Line {
    let previous = if previous { "; the previous one is taken too" } else { "" };
    match key {
        None => check.ok("none, and plaintext mode needs none"),
        Some(key) if key.is_canonical() => check.ok(format!("43 characters{previous}")),
        Some(_) => check.ok(format!(
            "43 characters{previous}; not canonical base64, as three keys in four: WeChat and wxrelay take it, old \
             decoders (commons-codec from 1.13 on) refuse it"
        )),
    }
}

/// Why an account does not take what it should.
#[derive(Debug, thiserror::Error)]
enum Fault {
    /// No random bytes.
    #[error("the system gives no random bytes")]
    Random(#[from] getrandom::Error),
    /// What WeChat would send can't be read.
    #[error("a query of our own cannot be read")]
    Query(#[from] QueryError),
    /// What WeChat would send does not open.
    #[error("what WeChat would send is refused: {0}")]
    Open(#[from] OpenError),
    /// It opens to another text.
    #[error("the {0} comes out changed")]
    Changed(&'static str),
    /// A clear push passes where only sealed ones may.
    #[error("a clear push is taken")]
    Downgrade,
}

fn modes(check: &Check, own: &Credentials) -> Line {
    let mut tried = Vec::new();
    let others = [Mode::Plaintext, Mode::Compatible, Mode::Secure].into_iter().filter(|mode| *mode != own.mode);
    for mode in [own.mode].into_iter().chain(others).filter(|mode| *mode == Mode::Plaintext || own.aes_key.is_some()) {
        if let Err(fault) = against_itself(&Credentials { mode, ..own.clone() }) {
            return check.failed(format!("{mode}: {fault}"), "this is a bug: please report it with this line");
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

/// Verification, push and reply, as WeChat would have them with each token and key that the account takes.
fn against_itself(own: &Credentials) -> Result<(), Fault> {
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

fn exchange(own: &Credentials, wechat: &Credentials) -> Result<(), Fault> {
    let query = wechat.verification("4375120948345356249", &salt()?);
    if own.verify_url(&Query::parse(&query)?)? != "4375120948345356249" {
        return Err(Fault::Changed("echostr"));
    }
    let clear = Kind::Text { content: "wxrelay doctor".to_owned() }.clear_xml(PARTIES, &Fresh::now()?);
    let push = wechat.push(&clear, PARTIES.openid, &salt()?);
    let opened = own.open(&Query::parse(&push.query)?, &Bytes::from(push.body))?;
    if opened.clear != clear.as_bytes() {
        return Err(Fault::Changed("push"));
    }
    let reply = own.seal_reply(REPLY, opened.manner, &salt()?);
    let read = if own.mode == Mode::Plaintext { reply.into() } else { wechat.open_reply(reply.as_bytes())? };
    if read != REPLY.as_bytes() {
        return Err(Fault::Changed("reply"));
    }
    let stripped = Credentials { mode: Mode::Plaintext, ..wechat.clone() }.push(&clear, "", &salt()?);
    let taken = own.open(&Query::parse(&stripped.query)?, &Bytes::from(stripped.body)).is_ok();
    if taken && own.mode != Mode::Plaintext { Err(Fault::Downgrade) } else { Ok(()) }
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
            against_itself(&credentials(mode)).unwrap();
        }
        let keyless = Credentials { aes_key: None, previous_aes_key: None, ..credentials(Mode::Plaintext) };
        against_itself(&keyless).unwrap();
    }

    #[test]
    fn another_key_or_token_does_not_pass() {
        let own = credentials(Mode::Secure);
        let stranger = Credentials { token: Secret::new("other"), previous_token: None, ..own.clone() };
        assert!(matches!(exchange(&own, &stranger), Err(Fault::Open(OpenError::Signature))));
        let one_key = Credentials { previous_aes_key: None, ..own.clone() };
        let stranger = Credentials { aes_key: own.previous_aes_key.clone(), ..own };
        assert!(matches!(exchange(&one_key, &stranger), Err(Fault::Open(OpenError::Envelope(_)))));
    }
}
