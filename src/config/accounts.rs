//! `[accounts.NAME]`: one official account each, with its path, keys and routes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::Problem;
use super::file::{self, SecretSource};
use super::routes;
use super::scope::Scope;
use super::sections;
use super::value;
use crate::dispatcher::TargetSettings;
use crate::push::{Account, AllowFrom, ReplyWindow};
use crate::secret::Secret;
use crate::wechat::{AesKey, Credentials, Mode};

/// What `wxrelay init` writes where it is not told the AppID.
pub const PLACEHOLDER: &str = "wx0000000000000000";

/// The length of an EncodingAESKey: base64 of 32 bytes without its last sign.
const KEY_LENGTH: usize = 43;

/// What `dedup_window` is at least: WeChat repeats a push twice, 5 s apart.
const DEDUP_WINDOW: Duration = Duration::from_secs(120);

/// What routes can name: every target of the file, also those with a mistake, and those without.
pub(super) struct Known<'a> {
    /// The names.
    pub(super) names: Vec<&'a str>,
    /// The targets that could be read.
    pub(super) targets: &'a [TargetSettings],
}

/// All accounts that could be read.
pub(super) fn accounts(scope: &Scope<'_>, file: &BTreeMap<String, file::Account>, known: &Known<'_>) -> Vec<Account> {
    if file.is_empty() {
        scope
            .fault(Problem::Missing("at least one [accounts.NAME] table; `wxrelay init` writes a first configuration"));
    }
    let mut accounts: Vec<Account> = Vec::new();
    for (name, file) in file {
        let scope = scope.at(name);
        let Some(account) = account(&scope, name, file, known) else { continue };
        if let Some(twin) = accounts.iter().find(|other| other.path == account.path) {
            scope.at("path").fault(Problem::SamePath(twin.name.to_string()));
        }
        if let Some(twin) = accounts.iter().find(|other| share_a_token_in_clear(other, &account)) {
            let twin = &twin.name;
            scope
                .at("token")
                .warn(format_args!("the same as accounts.{twin}.token: a plaintext push to one passes for the other"));
        }
        accounts.push(account);
    }
    accounts
}

/// In plaintext mode nothing but the token tells for which account a push was signed.
fn share_a_token_in_clear(one: &Account, other: &Account) -> bool {
    let clear = |account: &Account| account.credentials.mode == Mode::Plaintext;
    clear(one) && clear(other) && one.credentials.token.matches(other.credentials.token.expose())
}

/// Names can be reached from the environment, which is read in lower case.
pub(super) fn check_name(scope: &Scope<'_>, name: &str) {
    if !value::is_name(name) {
        scope.fault(Problem::Rule("expected a name of a-z, 0-9, `_` and `-`, in lower case"));
    }
}

/// A token as WeChat's console takes it.
pub(super) fn token(scope: &Scope<'_>, name: &str, given: &Option<SecretSource>) -> Option<Secret> {
    let sound = |text: &str| (3..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let parse = |text: &str| {
        if sound(text) { Ok(Secret::new(text)) } else { Err(Problem::Hidden("3 to 32 characters of A-Z, a-z and 0-9")) }
    };
    scope.secret_of(name, given, parse)
}

/// An EncodingAESKey.
pub(super) fn aes_key(text: &str) -> Result<AesKey, Problem> {
    let length = text.chars().count();
    if length != KEY_LENGTH {
        return Err(Problem::KeyLength(length));
    }
    AesKey::parse(text).map_err(|_| Problem::Hidden("43 characters of A-Z, a-z and 0-9, found others among them"))
}

fn account(scope: &Scope<'_>, name: &str, file: &file::Account, known: &Known<'_>) -> Option<Account> {
    check_name(scope, name);
    let expected = "the path of the server URL, such as \"/wechat/events\"";
    let path = scope.demand("path", &file.path, expected, value::account_path);
    let credentials = credentials(scope, file);
    let max_skew = scope.read("max_skew", &file.max_skew, value::skew).unwrap_or(Some(Duration::from_secs(600)));
    let reply_budget = scope.read("reply_budget", &file.reply_budget, value::reply_budget);
    let reply_budget = reply_budget.unwrap_or(Duration::from_millis(4500));
    let reply_window = reply_window(scope, file, reply_budget);
    let allow_from = file.allow_from.as_ref().map(|given| allow_from(&scope.at("allow_from"), given));
    let routes = routes::table(scope, &file.routes, known);
    Some(Account {
        name: name.into(),
        path: path?,
        credentials: credentials?,
        max_skew,
        reply_budget,
        reply_window,
        allow_from,
        routes,
    })
}

fn credentials(scope: &Scope<'_>, file: &file::Account) -> Option<Credentials> {
    let app_id = scope.demand("app_id", &file.app_id, "the AppID from WeChat's console", value::app_id);
    if file.token.is_none() {
        scope.at("token").fault(Problem::Missing("the Token from WeChat's console"));
    }
    let token = token(scope, "token", &file.token);
    let previous_token = self::token(scope, "previous_token", &file.previous_token);
    let mode = match &file.mode {
        Some(_) => scope.read("mode", &file.mode, value::mode),
        None => Some(Mode::Secure),
    };
    let aes_key = scope.secret_of("encoding_aes_key", &file.encoding_aes_key, aes_key);
    let previous_aes_key = scope.secret_of("previous_encoding_aes_key", &file.previous_encoding_aes_key, self::aes_key);
    match mode {
        Some(Mode::Plaintext) => {
            scope
                .at("mode")
                .warn(format_args!("plaintext is for WeChat's test accounts: pushes can be read on their way"));
        }
        Some(Mode::Compatible | Mode::Secure) if file.encoding_aes_key.is_none() => {
            let expected = "the EncodingAESKey from WeChat's console, since mode is \"compatible\" or \"secure\"";
            scope.at("encoding_aes_key").fault(Problem::Missing(expected));
        }
        Some(Mode::Compatible | Mode::Secure) | None => {}
    }
    if app_id.as_deref() == Some(PLACEHOLDER) {
        scope
            .at("app_id")
            .warn(format_args!("the placeholder of `wxrelay init`: put your AppID there (开发者ID(AppID))"));
    }
    let app_id = app_id?.into();
    Some(Credentials { app_id, token: token?, previous_token, aes_key, previous_aes_key, mode: mode? })
}

/// Where its pushes come from.
fn allow_from(scope: &Scope<'_>, given: &file::ListOrTable<file::AllowFrom>) -> AllowFrom {
    let action = |text: &str| match text {
        "log" => Ok(false),
        "deny" => Ok(true),
        _ => Err("\"log\" or \"deny\""),
    };
    let (at, texts, deny) = match given {
        file::ListOrTable::List(list) => (scope.clone(), Some(list), None),
        file::ListOrTable::Table(table) => {
            (scope.at("networks"), table.networks.as_ref(), scope.read("action", &table.action, action))
        }
    };
    let texts = texts.map_or(&[][..], |list| &list.0);
    if texts.is_empty() {
        at.fault(Problem::Missing("at least one network such as \"101.226.103.0/24\", or allow_from left out"));
    }
    AllowFrom { networks: sections::networks(&at, texts), deny: deny.unwrap_or(false) }
}

/// The window for late replies, and what it may cost.
fn reply_window(scope: &Scope<'_>, file: &file::Account, budget: Duration) -> Option<ReplyWindow> {
    let cost = scope.read("reply_window_failures", &file.reply_window_failures, value::failures);
    let (failures, period) = cost.unwrap_or((20, Duration::from_secs(300)));
    let length = scope.read("reply_window", &file.reply_window, value::reply_window)??;
    if length <= budget {
        let why = "not longer than reply_budget, within which every reply is in time; expected more, or \"off\"";
        scope.at("reply_window").fault(Problem::Rule(why));
    }
    Some(ReplyWindow { length, failures, period })
}

/// How long a repeat of a push must be known, by the account that asks for most. The store forgets finished events
/// after `retention`, so no window can be longer.
pub(super) fn dedup_window(scope: &Scope<'_>, file: &BTreeMap<String, file::Account>, retention: Duration) -> Duration {
    let mut longest = DEDUP_WINDOW;
    for (name, file) in file.iter().filter(|(_, file)| file.dedup_window.is_some()) {
        let scope = scope.at(name);
        let window = scope.read("dedup_window", &file.dedup_window, value::some_duration).unwrap_or_default();
        if window > retention {
            let why = "longer than queue.retention, expected at most that: older events are forgotten";
            scope.at("dedup_window").fault(Problem::Rule(why));
        }
        longest = longest.max(window);
    }
    longest
}
