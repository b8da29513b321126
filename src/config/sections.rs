//! `[server]`, `[admin]`, `[queue]`, `[log]` and `[telemetry]`: what the relay as a whole is told.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::error::Problem;
use super::file;
use super::scope::Scope;
use super::{certificates, targets, value};
use crate::queue::{EncryptionKey, EncryptionKeys};
use crate::server::{self, Listen};
use crate::telemetry::{LogFormat, OpenIds};
use crate::{admin, otlp, queue, telemetry};

/// A bearer token shorter than this can be guessed.
const SHORT_TOKEN: usize = 16;

/// `[server]`; what ACME gives is kept in the store's folder.
pub(super) fn server(scope: &Scope<'_>, file: &file::Server, store: &Path) -> server::Settings {
    let default = vec!["0.0.0.0:8080".to_owned()];
    let listen = listen_list(&scope.at("listen"), file.listen.as_ref().map_or(&default, |list| &list.0));
    let tls = file.tls.as_ref().map_or_else(Vec::new, |tls| certificates::all(&scope.at("tls"), tls, store));
    let proxies = file.trusted_proxies.as_ref().map_or(&[][..], |list| &list.0);
    let proxy_protocol = scope.read("proxy_protocol", &file.proxy_protocol, value::boolean).unwrap_or(false);
    let all_unix = listen.iter().all(|place| matches!(place, Listen::Unix(_)));
    if proxy_protocol && proxies.is_empty() && !all_unix {
        let expected = "the load balancers' addresses, since server.proxy_protocol is on: it is taken from these alone";
        scope.at("trusted_proxies").fault(Problem::Missing(expected));
    }
    server::Settings {
        listen,
        tls,
        trusted_proxies: networks(&scope.at("trusted_proxies"), proxies),
        proxy_protocol,
        http2: scope.read("http2", &file.http2, value::boolean).unwrap_or(false),
        drain: scope.read("drain", &file.drain, value::duration).unwrap_or(Duration::from_secs(10)),
        max_body: scope.read("max_body", &file.max_body, value::max_body).unwrap_or(1024 * 1024),
    }
}

/// `server.strict`: whether files with secrets must be closed to others.
pub(super) fn strict(scope: &Scope<'_>, file: &file::Server) -> bool {
    scope.read("strict", &file.strict, value::boolean).unwrap_or(false)
}

fn listen_list(scope: &Scope<'_>, texts: &[String]) -> Vec<Listen> {
    if texts.is_empty() {
        scope.fault(Problem::Missing("at least one address to listen at"));
    }
    let mut places = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let Some(place) = listen(&scope.nth(index), text) else { continue };
        if places.contains(&place) {
            scope.nth(index).fault(Problem::Rule("the same address as above, expected each once"));
        }
        places.push(place);
    }
    places
}

fn listen(scope: &Scope<'_>, text: &str) -> Option<Listen> {
    match scope.parse(text, value::listen)? {
        Listen::Unix(path) => Some(Listen::Unix(scope.resolve(&path.to_string_lossy()))),
        place @ (Listen::Tcp(_) | Listen::Systemd) => Some(place),
    }
}

/// Networks, or single addresses.
pub(super) fn networks(scope: &Scope<'_>, texts: &[String]) -> Vec<IpNet> {
    let network = |text: &str| {
        let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse().ok().or_else(one).ok_or("a network such as \"10.0.0.0/8\" or an address")
    };
    texts.iter().enumerate().filter_map(|(index, text)| scope.nth(index).parse(text, network)).collect()
}

/// `[admin]`
pub(super) fn admin(scope: &Scope<'_>, file: &file::Admin, server: &server::Settings) -> Option<admin::Settings> {
    let default = "127.0.0.1:9180".to_owned();
    let at = scope.at("listen");
    let listen = listen(&at, file.listen.as_ref().map_or(&default, |text| &text.0));
    let token = scope.secret("token", &file.token);
    if let Some(token) = &token {
        check_bearer(&scope.at("token"), token.expose());
    }
    let listen = listen?;
    let local = match &listen {
        Listen::Tcp(address) => address.ip().is_loopback(),
        Listen::Unix(_) => true,
        Listen::Systemd => false,
    };
    if !local && file.token.is_none() {
        scope.at("token").fault(Problem::Missing("a token, since admin.listen is not on loopback"));
    }
    let fixed = !matches!(&listen, Listen::Tcp(address) if address.port() == 0);
    if fixed && server.listen.contains(&listen) {
        at.fault(Problem::Rule("the same address as server.listen, expected one of its own"));
    }
    Some(admin::Settings { listen, token })
}

fn check_bearer(scope: &Scope<'_>, token: &str) {
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        scope.fault(Problem::Hidden("visible ASCII characters without blanks, at least one"));
    } else if token.len() < SHORT_TOKEN {
        scope.warn(format_args!("a token of less than {SHORT_TOKEN} characters can be guessed"));
    }
}

/// `[queue]`
pub(super) fn queue(scope: &Scope<'_>, file: &file::Queue) -> queue::Settings {
    let engine = |text: &str| if text == "embedded" { Ok(()) } else { Err("\"embedded\"") };
    scope.read("type", &file.engine, engine);
    queue::Settings {
        path: scope.path("path", &file.path).unwrap_or_else(|| "/var/lib/wxrelay".into()),
        retention: scope
            .read("retention", &file.retention, value::some_duration)
            .unwrap_or(Duration::from_hours(7 * 24)),
        dedup_window: Duration::ZERO,
        max_size: scope.read("max_size", &file.max_size, value::max_size).unwrap_or(10 << 30),
        encryption_keys: EncryptionKeys::new(scope.secrets_of(
            "encryption_keys",
            &file.encryption_keys,
            encryption_key,
        )),
    }
}

fn encryption_key(text: &str) -> Result<EncryptionKey, Problem> {
    let expected = "the base64 of 32 bytes, as `wxrelay keygen` or `openssl rand -base64 32` makes it";
    EncryptionKey::parse(text).ok_or(Problem::Hidden(expected))
}

/// `[log]`
pub(super) fn log(scope: &Scope<'_>, file: &file::Log) -> telemetry::Settings {
    let format = |text: &str| match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("\"json\" or \"text\""),
    };
    let level = |text: &str| {
        let expected = "a level (error, warn, info, debug, trace) or a filter such as \"info,wxrelay::push=debug\"";
        telemetry::filter(text).map(|_| text.to_owned()).map_err(|_| expected)
    };
    let openid = |text: &str| match text {
        "hash" => Ok(OpenIds::Hash),
        "clear" => Ok(OpenIds::Clear),
        _ => Err("\"hash\" or \"clear\""),
    };
    telemetry::Settings {
        format: scope.read("format", &file.format, format).unwrap_or(LogFormat::Json),
        level: scope.read("level", &file.level, level).unwrap_or_else(|| "info".to_owned()),
        openid: scope.read("openid", &file.openid, openid).unwrap_or(OpenIds::Hash),
    }
}

/// `[telemetry]`
pub(super) fn telemetry(scope: &Scope<'_>, file: &file::Telemetry) -> otlp::Settings {
    let name = |text: &str| if text.trim().is_empty() { Err("a name such as \"wxrelay\"") } else { Ok(text.into()) };
    otlp::Settings {
        // Some collectors know their customer by the URL, so it is not shown.
        url: scope.secret_of("otlp", &file.otlp, |text| value::collector(text).map_err(Problem::Hidden)),
        headers: targets::headers(&scope.at("headers"), &file.headers),
        service_name: scope.read("service_name", &file.service_name, name).unwrap_or_else(|| "wxrelay".into()),
    }
}
