//! `[accounts.NAME]`: one official account each, with its path, keys and routes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::Problem;
use super::file::{self, SecretSource};
use super::held_replies;
use super::key_reader::KeyReader;
use super::routes;
use super::sections;
use super::value;
use crate::dispatcher::TargetSettings;
use crate::push::{Account, AllowFrom, ReplyWindow};
use crate::secret::Secret;
use crate::wechat::{AesKey, Credentials, Mode};

/// The AppID that `wxrelay init` writes when none is given.
pub const PLACEHOLDER: &str = "wx0000000000000000";

/// The length of an EncodingAESKey: base64 of 32 bytes without the padding.
const KEY_LENGTH: usize = 43;

/// The least `dedup_window`: WeChat retries a push twice, 5 s apart.
const MIN_DEDUP_WINDOW: Duration = Duration::from_secs(120);

/// The targets that routes can name.
pub(super) struct KnownTargets<'a> {
    /// All names in the file, those of targets with errors included.
    pub(super) names: Vec<&'a str>,
    /// The targets without errors.
    pub(super) targets: &'a [TargetSettings],
    /// As the file has them, for what their providers take.
    pub(super) sections: &'a BTreeMap<String, file::TargetSection>,
}

/// All accounts that can be read.
pub(super) fn accounts(
    reader: &KeyReader<'_>,
    file: &BTreeMap<String, file::AccountSection>,
    known: &KnownTargets<'_>,
) -> Vec<Account> {
    if file.is_empty() {
        reader.report(Problem::Missing("at least one [accounts.NAME] table, as `wxrelay init` writes it"));
    }
    let mut accounts: Vec<Account> = Vec::new();
    for (name, file) in file {
        let reader = reader.at(name);
        let Some(account) = account(&reader, name, file, known) else { continue };
        if let Some(earlier) = accounts.iter().find(|earlier| earlier.path == account.path) {
            reader.at("path").report(Problem::SamePath(format!("accounts.{}", earlier.name)));
        }
        if let Some(earlier) = accounts.iter().find(|earlier| share_plaintext_token(earlier, &account)) {
            let earlier = &earlier.name;
            reader.at("token").warn(format_args!(
                "the same as accounts.{earlier}.token: a plaintext push to one account is valid for the other"
            ));
        }
        accounts.push(account);
    }
    accounts
}

/// In plaintext mode only the token shows for which account a push was signed.
fn share_plaintext_token(one: &Account, other: &Account) -> bool {
    let clear = |account: &Account| account.credentials.mode == Mode::Plaintext;
    clear(one) && clear(other) && one.credentials.token.matches(other.credentials.token.expose())
}

/// Reports an invalid name. Upper case is invalid, as environment variables, which are read in lower case, could not
/// set its keys.
pub(super) fn check_name(reader: &KeyReader<'_>, name: &str) {
    if !value::is_name(name) {
        reader.report(Problem::expected("invalid name", "a-z, 0-9, `_` and `-`, in lower case"));
    }
}

/// Reads a token, by the rules of WeChat's console.
pub(super) fn token(reader: &KeyReader<'_>, name: &str, given: &Option<SecretSource>) -> Option<Secret> {
    let sound = |text: &str| (3..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let parse = |text: &str| {
        if sound(text) { Ok(Secret::new(text)) } else { Err(Problem::Secret("3 to 32 characters of A-Z, a-z and 0-9")) }
    };
    reader.parse_secret(name, given, parse)
}

pub(super) fn aes_key(text: &str) -> Result<AesKey, Problem> {
    let length = text.chars().count();
    if length != KEY_LENGTH {
        return Err(Problem::KeyLength(length));
    }
    AesKey::parse(text).map_err(|_| Problem::Secret("43 characters of A-Z, a-z and 0-9 and no others"))
}

fn account(
    reader: &KeyReader<'_>,
    name: &str,
    file: &file::AccountSection,
    known: &KnownTargets<'_>,
) -> Option<Account> {
    check_name(reader, name);
    let expected = "the path of the server URL, such as \"/wechat/events\"";
    let path = reader.require("path", &file.path, expected, value::account_path);
    if let Some(path) = &path {
        warn_of_placeholder(&reader.at("path"), path);
    }
    let credentials = credentials(reader, file);
    let max_skew = reader.read("max_skew", &file.max_skew, value::skew).unwrap_or(Some(Duration::from_secs(600)));
    let reply_budget = reader.read("reply_budget", &file.reply_budget, value::reply_budget);
    let reply_budget = reply_budget.unwrap_or(Duration::from_millis(4500));
    let reply_window = reply_window(reader, file, reply_budget);
    let (long_text, held) = held_replies::read(reader, file);
    let allow_from = file.allow_from.as_ref().map(|given| allow_from(&reader.at("allow_from"), given));
    let routes = routes::table(reader, &file.routes, known);
    Some(Account {
        name: name.into(),
        path: path?,
        credentials: credentials?,
        max_skew,
        reply_budget,
        reply_window,
        long_text,
        held,
        allow_from,
        routes,
    })
}

fn is_usual_app_id(app_id: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    app_id.strip_prefix("wx").is_some_and(|rest| rest.len() == 16 && rest.bytes().all(digit))
}

/// A path is compared as it is, so a placeholder in it matches no push.
fn warn_of_placeholder(reader: &KeyReader<'_>, path: &str) {
    if path.contains('$') || path.contains('*') || path.contains(['{', '<']) {
        reader.warn(format_args!(
            "`{path}` is compared as it is: `*` and placeholders such as `$APPID$` stand for nothing else; give each \
             account a path of its own"
        ));
    }
}

fn credentials(reader: &KeyReader<'_>, file: &file::AccountSection) -> Option<Credentials> {
    let app_id = reader.require("app_id", &file.app_id, "the AppID from WeChat's console", value::app_id);
    if file.token.is_none() {
        reader.at("token").report(Problem::Missing("the Token from WeChat's console"));
    }
    let token = token(reader, "token", &file.token);
    let previous_token = self::token(reader, "previous_token", &file.previous_token);
    let mode = match &file.mode {
        Some(_) => reader.read("mode", &file.mode, value::mode),
        None => Some(Mode::Secure),
    };
    let aes_key = reader.parse_secret("encoding_aes_key", &file.encoding_aes_key, aes_key);
    let previous_aes_key =
        reader.parse_secret("previous_encoding_aes_key", &file.previous_encoding_aes_key, self::aes_key);
    match mode {
        Some(Mode::Plaintext) => {
            reader.at("mode").warn(format_args!("plaintext is for WeChat's test accounts: pushes are not encrypted"));
        }
        Some(Mode::Compatible | Mode::Secure) if file.encoding_aes_key.is_none() => {
            let expected = "the EncodingAESKey from WeChat's console, since mode is \"compatible\" or \"secure\"";
            reader.at("encoding_aes_key").report(Problem::Missing(expected));
        }
        Some(Mode::Compatible | Mode::Secure) | None => {}
    }
    if let Some(given) = app_id.as_deref().filter(|given| !is_usual_app_id(given)) {
        reader.at("app_id").warn(format_args!(
            "`{given}` is not `wx` and 16 hex digits, as the AppIDs of official accounts are; a push of another AppID is \
             refused"
        ));
    }
    if app_id.as_deref() == Some(PLACEHOLDER) {
        reader.at("app_id").warn(format_args!("the placeholder of `wxrelay init`: replace it by your AppID"));
    }
    let app_id = app_id?.into();
    Some(Credentials { app_id, token: token?, previous_token, aes_key, previous_aes_key, mode: mode? })
}

/// Reads the networks that an account's pushes come from.
fn allow_from(reader: &KeyReader<'_>, given: &file::ListOrTable<file::AllowFromSection>) -> AllowFrom {
    let action = |text: &str| match text {
        "log" => Ok(false),
        "deny" => Ok(true),
        _ => Err("\"log\" or \"deny\""),
    };
    let (at, texts, deny) = match given {
        file::ListOrTable::List(list) => (reader.clone(), Some(list), None),
        file::ListOrTable::Table(table) => {
            (reader.at("networks"), table.networks.as_ref(), reader.read("action", &table.action, action))
        }
    };
    let texts = texts.map_or(&[][..], |list| &list.0);
    if texts.is_empty() {
        at.report(Problem::Missing("at least one network such as \"101.226.103.0/24\", or allow_from left out"));
    }
    AllowFrom { networks: sections::networks(&at, texts), deny: deny.unwrap_or(false) }
}

/// Reads the window for late replies, and its failure budget.
fn reply_window(reader: &KeyReader<'_>, file: &file::AccountSection, budget: Duration) -> Option<ReplyWindow> {
    let cost = reader.read("reply_window_failures", &file.reply_window_failures, value::failures);
    let (failures, period) = cost.unwrap_or((20, Duration::from_secs(300)));
    let length = reader.read("reply_window", &file.reply_window, value::reply_window)??;
    if length <= budget {
        let broken = "not longer than reply_budget, within which every reply is in time";
        reader.at("reply_window").report(Problem::expected(broken, "more than reply_budget, or \"off\""));
    }
    Some(ReplyWindow { length, failures, period })
}

/// How long a push is recognised at least, whatever is deleted: a copy of it is accepted while its timestamp is within
/// `max_skew` of the clock, on either side.
pub(super) fn replay_window(accounts: &[Account], dedup_window: Duration) -> Duration {
    accounts.iter().filter_map(|account| Some(account.max_skew? * 2)).fold(dedup_window, Duration::max)
}

/// The longest deduplication window of all accounts. The store deletes finished events after `retention`, so no window
/// can be longer.
pub(super) fn dedup_window(
    reader: &KeyReader<'_>,
    file: &BTreeMap<String, file::AccountSection>,
    retention: Duration,
) -> Duration {
    let mut longest = MIN_DEDUP_WINDOW;
    for (name, file) in file.iter().filter(|(_, file)| file.dedup_window.is_some()) {
        let reader = reader.at(name);
        let window = reader.read("dedup_window", &file.dedup_window, value::some_duration).unwrap_or_default();
        if window > retention {
            let broken = "longer than queue.retention, after which finished events are deleted";
            reader.at("dedup_window").report(Problem::expected(broken, "at most queue.retention"));
        }
        longest = longest.max(window);
    }
    longest
}
