//! `[targets.NAME]`: where events are delivered, and on which schedule.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::accounts;
use super::conditions;
use super::error::Problem;
use super::file::{self, List, SecretSource};
use super::key_reader::KeyReader;
use super::provider::{self, Endpoint};
use super::value::{self, Parsed};
use crate::backoff::Schedule;
use crate::deliver::{
    AnswerPatterns, AnswerRules, CredentialsOverride, Format, Role, SigningKey, Target, TlsOptions, Tries, address,
};
use crate::dispatcher::TargetSettings;
use crate::queue::DeliveryOrder;

/// An identity provider's schedule; its last wait repeats.
const IDENTITY_RETRY: [&str; 8] = ["200ms", "500ms", "1s", "2s", "4s", "8s", "15s", "30s"];

/// A handler's schedule: 76 hours.
const HANDLER_RETRY: [&str; 10] = ["5s", "30s", "5m", "30m", "2h", "5h", "10h", "14h", "20h", "24h"];

const FORMATS: [(&str, Format); 5] = [
    ("raw", Format::Raw),
    ("wechat", Format::Wechat),
    ("json", Format::Json),
    ("cloudevents", Format::CloudEvents),
    ("authing-json", Format::AuthingJson),
];

/// In `delivered_if` and the like, in place of a pattern: JSON that reports an error, or none.
const JSON_WORD: &str = "json";

/// Headers that frame the request or that the relay writes itself.
const OWN_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "te",
    "trailer",
    "transfer-encoding",
    "traceparent",
    "upgrade",
];

/// All targets without errors.
pub(super) fn targets(reader: &KeyReader<'_>, file: &BTreeMap<String, file::TargetSection>) -> Vec<TargetSettings> {
    file.iter().filter_map(|(name, file)| target(&reader.at(name), name, file)).collect()
}

fn target(reader: &KeyReader<'_>, name: &str, file: &file::TargetSection) -> Option<TargetSettings> {
    accounts::check_name(reader, name);
    let role = role(reader, file);
    let endpoint = provider::endpoint(reader, file);
    let default_format = endpoint.as_ref().map_or(Format::Raw, |endpoint| endpoint.format);
    let format = reader.read("format", &file.format, format).unwrap_or(default_format);
    let timeout = Duration::from_secs(if role == Role::Identity { 5 } else { 15 });
    let mut credentials = credentials(reader, file, format);
    let tls = tls(reader, file);
    let timeout = reader.read("timeout", &file.timeout, value::some_duration).unwrap_or(timeout);
    let tries = tries(reader, file, format, timeout);
    let headers = headers(&reader.at("headers"), &file.headers);
    let signing_keys = reader.parse_secrets("secret", &file.secret, signing_key);
    let proxy = reader.read_secret_text("proxy", &file.proxy, value::proxy);
    let retry = retry(&reader.at("retry"), file, role);
    let expire_after = expire_after(reader, file, role);
    let concurrency = reader.read("concurrency", &file.concurrency, value::concurrency).unwrap_or(32);
    let rate = reader.read("rate", &file.rate, value::rate);
    let order = reader.read("order", &file.order, order).unwrap_or(DeliveryOrder::None);
    let answers = answers(reader, file);
    let Endpoint { url, mode, bare_scene, answers: preset, .. } = endpoint?;
    credentials.mode = credentials.mode.or(mode);
    let deny_private = deny_private(reader, file, &url);
    let name = name.into();
    let target = Target {
        name,
        role,
        url,
        format,
        timeout,
        tries,
        headers,
        signing_keys,
        credentials,
        tls,
        proxy,
        deny_private,
        bare_scene,
        answers: AnswerRules {
            delivered_if: answers.delivered_if.or(preset.delivered_if),
            failed_if: answers.failed_if.or(preset.failed_if),
            no_reply_if: answers.no_reply_if.or(preset.no_reply_if),
        },
    };
    Some(TargetSettings { target, retry, expire_after, concurrency, rate, order })
}

/// What the text of an answer means.
fn answers(reader: &KeyReader<'_>, file: &file::TargetSection) -> AnswerRules {
    let read = |name: &str, list: &Option<List>| answer_patterns(&reader.at(name), list.as_ref()?);
    AnswerRules {
        delivered_if: read("delivered_if", &file.delivered_if),
        failed_if: read("failed_if", &file.failed_if),
        no_reply_if: read("no_reply_if", &file.no_reply_if),
    }
}

/// Patterns as those of a route, and the word `json`.
fn answer_patterns(reader: &KeyReader<'_>, list: &List) -> Option<AnswerPatterns> {
    let mut texts = conditions::patterns(reader, list, false)?;
    let given = texts.0.len();
    texts.0.retain(|pattern| pattern.exact_text() != Some(JSON_WORD));
    let json = texts.0.len() < given;
    Some(AnswerPatterns { texts, json })
}

fn role(reader: &KeyReader<'_>, file: &file::TargetSection) -> Role {
    let role = |text: &str| match text {
        "identity" => Ok(Role::Identity),
        "handler" => Ok(Role::Handler),
        _ => Err("\"identity\" or \"handler\""),
    };
    let default = if file.provider.is_some() { Role::Identity } else { Role::Handler };
    reader.read("role", &file.role, role).unwrap_or(default)
}

fn format(text: &str) -> Parsed<Format> {
    let found = FORMATS.iter().find(|(word, _)| *word == text);
    let expected = "\"raw\", \"wechat\", \"json\", \"cloudevents\" or \"authing-json\"";
    found.map(|(_, format)| *format).ok_or(expected)
}

/// A format's name in the configuration.
pub fn format_word(format: Format) -> &'static str {
    FORMATS.iter().find(|(_, known)| *known == format).map_or("", |(word, _)| word)
}

/// The values of `order`.
pub(super) fn order(text: &str) -> Parsed<DeliveryOrder> {
    match text {
        "none" => Ok(DeliveryOrder::None),
        "per_user" => Ok(DeliveryOrder::PerUser),
        _ => Err("\"none\" or \"per_user\""),
    }
}

/// How often the target gets an event whose reply is awaited. A bot that counts on WeChat's retries knows a repeat by its
/// MsgId, so it gets what WeChat sends.
fn tries(reader: &KeyReader<'_>, file: &file::TargetSection, format: Format, timeout: Duration) -> Tries {
    let each = |text: &str| match text {
        "once" => Ok(false),
        "each" => Ok(true),
        _ => Err("\"once\" or \"each\""),
    };
    let each = if file.tries.is_some() { reader.read("tries", &file.tries, each) } else { Some(false) };
    let not_yet_after = reader.read("not_yet_after", &file.not_yet_after, value::duration);
    let not_yet_after = not_yet_after.unwrap_or(Duration::from_secs(3));
    if each != Some(true) {
        if each.is_some() && file.not_yet_after.is_some() {
            let problem = Problem::action("only valid with tries = \"each\"", "remove it, or set that");
            reader.at("not_yet_after").report(problem);
        }
        return Tries::Once;
    }
    if !matches!(format, Format::Raw | Format::Wechat) {
        let problem = "\"each\" is only valid with format = \"raw\" or \"wechat\"";
        reader.at("tries").report(Problem::action(problem, "remove it, or set one of these formats"));
    }
    if not_yet_after >= timeout {
        let problem = "not shorter than timeout, within which a reply must come";
        reader.at("not_yet_after").report(Problem::expected(problem, "less than timeout"));
    }
    Tries::Each { not_yet_after }
}

fn credentials(reader: &KeyReader<'_>, file: &file::TargetSection, format: Format) -> CredentialsOverride {
    if format != Format::Wechat {
        let given = [
            ("app_id", file.app_id.is_some()),
            ("token", file.token.is_some()),
            ("encoding_aes_key", file.encoding_aes_key.is_some()),
            ("mode", file.mode.is_some()),
        ];
        for (name, _) in given.into_iter().filter(|(_, given)| *given) {
            reader
                .at(name)
                .report(Problem::action("only valid with format = \"wechat\"", "remove it, or set that format"));
        }
    }
    CredentialsOverride {
        app_id: reader.read("app_id", &file.app_id, value::app_id).map(Into::into),
        token: accounts::token(reader, "token", &file.token),
        aes_key: reader.parse_secret("encoding_aes_key", &file.encoding_aes_key, accounts::aes_key),
        mode: reader.read("mode", &file.mode, value::mode),
    }
}

fn tls(reader: &KeyReader<'_>, file: &file::TargetSection) -> TlsOptions {
    match (&file.client_cert, &file.client_key) {
        (Some(_), None) => reader.at("client_key").report(Problem::Missing("the key that belongs to client_cert")),
        (None, Some(_)) => {
            reader.at("client_cert").report(Problem::Missing("the certificate that belongs to client_key"))
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    let cert = reader.existing_file("client_cert", &file.client_cert);
    let key = reader.private_file("client_key", &file.client_key);
    TlsOptions { ca: reader.existing_file("ca", &file.ca), client: cert.zip(key) }
}

/// Request headers, whose values may be secrets.
pub(super) fn headers(reader: &KeyReader<'_>, file: &BTreeMap<String, SecretSource>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, source) in file {
        let reader = reader.at(name);
        let Ok(header) = HeaderName::try_from(name.as_str()) else {
            reader.report(Problem::expected("not a header name", "one such as `authorization`"));
            continue;
        };
        let text = header.as_str();
        if OWN_HEADERS.contains(&text) || text.starts_with("wxrelay-") || text.starts_with("webhook-") {
            reader.report(Problem::expected("the relay writes this header itself", "another header"));
            continue;
        }
        let value = if is_credential(&header) { reader.resolve_secret(source) } else { reader.resolve_text(source) };
        let Some(value) = value else { continue };
        match HeaderValue::try_from(value.expose()) {
            Ok(mut value) => {
                // It may be a credential: this hides it in `Debug`, and keeps it out of HTTP/2's header table.
                value.set_sensitive(true);
                headers.append(header, value);
            }
            Err(_) => reader.report(Problem::Secret("a header value: visible characters and blanks")),
        }
    }
    headers
}

/// Whether a header of that name is likely to hold a credential; `x-from` and the like are not secret.
fn is_credential(header: &HeaderName) -> bool {
    ["auth", "cookie", "key", "pass", "secret", "sign", "token"].iter().any(|part| header.as_str().contains(part))
}

fn signing_key(text: &str) -> Result<SigningKey, Problem> {
    let expected = "`whsec_` and the base64 of 24 to 64 bytes, as `wxrelay keygen` makes it";
    SigningKey::parse(text).ok_or(Problem::Secret(expected))
}

/// Whether the target must have a public address. A name is resolved at every connection; an address is checked now.
fn deny_private(reader: &KeyReader<'_>, file: &file::TargetSection, url: &Uri) -> bool {
    let denies = reader.read("deny_private", &file.deny_private, value::boolean).unwrap_or(false);
    let at = reader.at("deny_private");
    if denies && url.host().and_then(address::literal).is_some_and(|address| address::check_public(address).is_err()) {
        at.report(Problem::expected("denies the URL's own address, which is not public", "another URL, or false"));
    }
    if denies && file.proxy.is_some() {
        at.warn(format_args!("the proxy resolves the name, so the proxy must deny private addresses"));
    }
    denies
}

fn retry(reader: &KeyReader<'_>, file: &file::TargetSection, role: Role) -> Schedule {
    let defaults: &[&str] = if role == Role::Identity { &IDENTITY_RETRY } else { &HANDLER_RETRY };
    let texts = match &file.retry {
        Some(list) => list.0.iter().map(String::as_str).collect(),
        None => defaults.to_vec(),
    };
    let wait = |(index, text)| reader.nth(index).parse(text, value::some_duration);
    let waits = texts.into_iter().enumerate().filter_map(wait).collect();
    if role == Role::Identity { Schedule::repeating(waits) } else { Schedule::ending(waits) }
}

fn expire_after(reader: &KeyReader<'_>, file: &file::TargetSection, role: Role) -> Option<Duration> {
    let given = reader.read("expire_after", &file.expire_after, value::some_duration);
    if given.is_some() && role == Role::Handler {
        reader.at("expire_after").warn(format_args!("a handler receives no older event, not even after an outage"));
    }
    given.or((role == Role::Identity).then_some(Duration::from_secs(120)))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn signing_keys_are_whsec_and_base64_of_24_to_64_bytes() {
        let key = |length: usize| format!("whsec_{}", STANDARD.encode(vec![7; length]));
        assert!(signing_key(&key(24)).is_ok() && signing_key(&key(64)).is_ok());
        let two = format!("{} {}", key(32), key(64));
        for broken in [key(23), key(65), two, STANDARD.encode([7; 32]), "whsec_!".to_owned(), String::new()] {
            assert!(signing_key(&broken).is_err());
        }
    }
}
