//! `[targets.NAME]`: where events go, and how hard the relay tries.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::error::Problem;
use super::file::{self, SecretSource};
use super::scope::Scope;
use super::value::{self, Parsed};
use super::{accounts, provider};
use crate::backoff::Schedule;
use crate::deliver::{CredentialsOverride, Format, Role, SigningKey, Target, TlsOptions, address};
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

/// All targets that could be read.
pub(super) fn targets(scope: &Scope<'_>, file: &BTreeMap<String, file::Target>) -> Vec<TargetSettings> {
    file.iter().filter_map(|(name, file)| target(&scope.at(name), name, file)).collect()
}

fn target(scope: &Scope<'_>, name: &str, file: &file::Target) -> Option<TargetSettings> {
    accounts::check_name(scope, name);
    let role = role(scope, file);
    let endpoint = provider::endpoint(scope, file);
    let default_format = endpoint.as_ref().map_or(Format::Raw, |(_, format)| *format);
    let format = scope.read("format", &file.format, format).unwrap_or(default_format);
    let timeout = Duration::from_secs(if role == Role::Identity { 5 } else { 15 });
    let credentials = credentials(scope, file, format);
    let tls = tls(scope, file);
    let timeout = scope.read("timeout", &file.timeout, value::some_duration).unwrap_or(timeout);
    let headers = headers(&scope.at("headers"), &file.headers);
    let signing_keys = scope.secrets_of("secret", &file.secret, signing_key);
    let proxy = scope.read_hidden("proxy", &file.proxy, value::proxy);
    let retry = retry(&scope.at("retry"), file, role);
    let expire_after = expire_after(scope, file, role);
    let concurrency = scope.read("concurrency", &file.concurrency, value::concurrency).unwrap_or(32);
    let rate = scope.read("rate", &file.rate, value::rate);
    let order = scope.read("order", &file.order, order).unwrap_or(DeliveryOrder::None);
    let (url, _) = endpoint?;
    let deny_private = deny_private(scope, file, &url);
    let name = name.into();
    let target =
        Target { name, role, url, format, timeout, headers, signing_keys, credentials, tls, proxy, deny_private };
    Some(TargetSettings { target, retry, expire_after, concurrency, rate, order })
}

fn role(scope: &Scope<'_>, file: &file::Target) -> Role {
    let role = |text: &str| match text {
        "identity" => Ok(Role::Identity),
        "handler" => Ok(Role::Handler),
        _ => Err("\"identity\" or \"handler\""),
    };
    let default = if file.provider.is_some() { Role::Identity } else { Role::Handler };
    scope.read("role", &file.role, role).unwrap_or(default)
}

fn format(text: &str) -> Parsed<Format> {
    let found = FORMATS.iter().find(|(word, _)| *word == text);
    let expected = "\"raw\", \"wechat\", \"json\", \"cloudevents\" or \"authing-json\"";
    found.map(|(_, format)| *format).ok_or(expected)
}

/// The word for a format in the configuration.
pub(super) fn format_word(format: Format) -> &'static str {
    FORMATS.iter().find(|(_, known)| *known == format).map_or("", |(word, _)| word)
}

fn order(text: &str) -> Parsed<DeliveryOrder> {
    match text {
        "none" => Ok(DeliveryOrder::None),
        "per_user" => Ok(DeliveryOrder::PerUser),
        _ => Err("\"none\" or \"per_user\""),
    }
}

fn credentials(scope: &Scope<'_>, file: &file::Target, format: Format) -> CredentialsOverride {
    if format != Format::Wechat {
        let given = [
            ("app_id", file.app_id.is_some()),
            ("token", file.token.is_some()),
            ("encoding_aes_key", file.encoding_aes_key.is_some()),
            ("mode", file.mode.is_some()),
        ];
        for (name, _) in given.into_iter().filter(|(_, given)| *given) {
            scope.at(name).fault(Problem::Rule("only of use with format = \"wechat\""));
        }
    }
    CredentialsOverride {
        app_id: scope.read("app_id", &file.app_id, value::app_id).map(Into::into),
        token: accounts::token(scope, "token", &file.token),
        aes_key: scope.secret_of("encoding_aes_key", &file.encoding_aes_key, accounts::aes_key),
        mode: scope.read("mode", &file.mode, value::mode),
    }
}

fn tls(scope: &Scope<'_>, file: &file::Target) -> TlsOptions {
    match (&file.client_cert, &file.client_key) {
        (Some(_), None) => scope.at("client_key").fault(Problem::Missing("the key that belongs to client_cert")),
        (None, Some(_)) => scope.at("client_cert").fault(Problem::Missing("the certificate that client_key is of")),
        (Some(_), Some(_)) | (None, None) => {}
    }
    let cert = scope.existing("client_cert", &file.client_cert);
    let key = scope.private("client_key", &file.client_key);
    TlsOptions { ca: scope.existing("ca", &file.ca), client: cert.zip(key) }
}

/// Request headers, whose values may be secrets.
pub(super) fn headers(scope: &Scope<'_>, file: &BTreeMap<String, SecretSource>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, source) in file {
        let scope = scope.at(name);
        let Ok(header) = HeaderName::try_from(name.as_str()) else {
            scope.fault(Problem::Rule("expected the name of a header, such as `authorization`"));
            continue;
        };
        let text = header.as_str();
        if OWN_HEADERS.contains(&text) || text.starts_with("wxrelay-") || text.starts_with("webhook-") {
            scope.fault(Problem::Rule("the relay writes this header itself, expected another"));
            continue;
        }
        let value = if names_a_secret(&header) { scope.open(source) } else { scope.open_any(source) };
        let Some(value) = value else { continue };
        match HeaderValue::try_from(value.expose()) {
            Ok(mut value) => {
                // Many a header here is an Authorization: none is shown in Debug, nor indexed by HTTP/2.
                value.set_sensitive(true);
                headers.append(header, value);
            }
            Err(_) => scope.fault(Problem::Hidden("a header value: visible characters and blanks")),
        }
    }
    headers
}

/// Whether a header of that name tells who we are; `x-from` and the like may be read by anybody.
fn names_a_secret(header: &HeaderName) -> bool {
    ["auth", "cookie", "key", "pass", "secret", "sign", "token"].iter().any(|part| header.as_str().contains(part))
}

fn signing_key(text: &str) -> Result<SigningKey, Problem> {
    let expected = "`whsec_` and the base64 of 24 to 64 bytes, as `wxrelay keygen` makes it";
    SigningKey::parse(text).ok_or(Problem::Hidden(expected))
}

/// Whether the target must be one of the public internet. A name is looked up at every connection; an address can be
/// told now.
fn deny_private(scope: &Scope<'_>, file: &file::Target, url: &Uri) -> bool {
    let denies = scope.read("deny_private", &file.deny_private, value::boolean).unwrap_or(false);
    let at = scope.at("deny_private");
    if denies && url.host().and_then(address::literal).is_some_and(|address| address::public(address).is_err()) {
        at.fault(Problem::Rule("denies the URL's own address, which is not public; expected another URL, or false"));
    }
    if denies && file.proxy.is_some() {
        at.warn(format_args!("the proxy looks the name up, so it is the proxy that must deny private addresses"));
    }
    denies
}

fn retry(scope: &Scope<'_>, file: &file::Target, role: Role) -> Schedule {
    let defaults: &[&str] = if role == Role::Identity { &IDENTITY_RETRY } else { &HANDLER_RETRY };
    let texts = match &file.retry {
        Some(list) => list.0.iter().map(String::as_str).collect(),
        None => defaults.to_vec(),
    };
    let wait = |(index, text)| scope.nth(index).parse(text, value::some_duration);
    let waits = texts.into_iter().enumerate().filter_map(wait).collect();
    if role == Role::Identity { Schedule::repeating(waits) } else { Schedule::ending(waits) }
}

fn expire_after(scope: &Scope<'_>, file: &file::Target, role: Role) -> Option<Duration> {
    let given = scope.read("expire_after", &file.expire_after, value::some_duration);
    if given.is_some() && role == Role::Handler {
        scope.at("expire_after").warn(format_args!("a handler gets nothing that is older, not even after an outage"));
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
