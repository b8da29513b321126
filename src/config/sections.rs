//! `[server]`, `[admin]`, `[log]` and `[telemetry]`: settings of the relay as a whole.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::certificates::Kept;
use super::error::Problem;
use super::file;
use super::key_reader::KeyReader;
use super::{accounts, certificates, targets, value};
use crate::secret::Secret;
use crate::server::{self, Listen};
use crate::telemetry::{LogFormat, OpenIds};
use crate::{admin, otlp, queue, telemetry};

/// A bearer token shorter than this many characters can be guessed.
const SHORT_TOKEN: usize = 16;

/// `[server]`. Certificates from ACME are kept in the store.
pub(super) fn server(reader: &KeyReader<'_>, file: &file::ServerSection, queue: &queue::Settings) -> server::Settings {
    let default = vec!["0.0.0.0:8080".to_owned()];
    let listen = listen_list(&reader.at("listen"), file.listen.as_ref().map_or(&default, |list| &list.0));
    let has_key = queue.encryption_keys.first().is_some();
    let store = queue.folder().map_or(Kept::Postgres { has_key }, Kept::Files);
    let tls = file.tls.as_ref().map_or_else(Vec::new, |tls| certificates::all(&reader.at("tls"), tls, &store));
    let proxies = file.trusted_proxies.as_ref().map_or(&[][..], |list| &list.0);
    let proxy_protocol = reader.read("proxy_protocol", &file.proxy_protocol, value::boolean).unwrap_or(false);
    let all_unix = listen.iter().all(|address| matches!(address, Listen::Unix(_)));
    if proxy_protocol && proxies.is_empty() && !all_unix {
        let expected = "the load balancers' addresses, since server.proxy_protocol is on and only these may send it";
        reader.at("trusted_proxies").report(Problem::Missing(expected));
    }
    server::Settings {
        listen,
        tls,
        trusted_proxies: networks(&reader.at("trusted_proxies"), proxies),
        proxy_protocol,
        http2: reader.read("http2", &file.http2, value::boolean).unwrap_or(false),
        drain: reader.read("drain", &file.drain, value::duration).unwrap_or(Duration::from_secs(10)),
        max_body: reader.read("max_body", &file.max_body, value::max_body).unwrap_or(1024 * 1024),
    }
}

/// `server.strict`: whether it is an error if others can access a file with a secret, or the store.
pub(super) fn strict(reader: &KeyReader<'_>, file: &file::ServerSection) -> bool {
    reader.read("strict", &file.strict, value::boolean).unwrap_or(false)
}

fn listen_list(reader: &KeyReader<'_>, texts: &[String]) -> Vec<Listen> {
    if texts.is_empty() {
        reader.report(Problem::Missing("at least one address to listen on"));
    }
    let mut addresses = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let Some(address) = listen(&reader.nth(index), text) else { continue };
        if addresses.contains(&address) {
            reader.nth(index).report(Problem::expected("the same address as above", "each once"));
        } else if addresses.iter().any(|above| overlap(above, &address)) {
            reader
                .nth(index)
                .report(Problem::action("an address above has this port on all addresses", "remove one of them"));
        }
        addresses.push(address);
    }
    addresses
}

/// Whether the system refuses the second of two addresses: the port of one, on all addresses, is the port of the other.
fn overlap(one: &Listen, other: &Listen) -> bool {
    let (Listen::Tcp(one), Listen::Tcp(other)) = (one, other) else { return false };
    let covers = |any: &SocketAddr, one: &SocketAddr| any.ip().is_unspecified() && (any.is_ipv6() || one.is_ipv4());
    one.port() != 0 && one.port() == other.port() && one != other && (covers(one, other) || covers(other, one))
}

fn listen(reader: &KeyReader<'_>, text: &str) -> Option<Listen> {
    match reader.parse(text, value::listen)? {
        Listen::Unix(path) => Some(Listen::Unix(reader.resolve(&path.to_string_lossy()))),
        address @ (Listen::Tcp(_) | Listen::Systemd) => Some(address),
    }
}

/// Networks, or single addresses.
pub(super) fn networks(reader: &KeyReader<'_>, texts: &[String]) -> Vec<IpNet> {
    let network = |text: &str| {
        let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse().ok().or_else(one).ok_or("a network such as \"10.0.0.0/8\" or an address")
    };
    texts.iter().enumerate().filter_map(|(index, text)| reader.nth(index).parse(text, network)).collect()
}

/// `admin.listen`
pub(super) fn admin_listen(reader: &KeyReader<'_>, file: &file::AdminSection) -> Option<Listen> {
    listen(&reader.at("listen"), file.listen.as_ref().map_or("127.0.0.1:9180", |text| &text.0))
}

/// `[admin]`
pub(super) fn admin(
    reader: &KeyReader<'_>,
    file: &file::AdminSection,
    server: &server::Settings,
) -> Option<admin::Settings> {
    let at = reader.at("listen");
    let listen = admin_listen(reader, file);
    let token = reader.secret("token", &file.token);
    if let Some(token) = &token {
        check_bearer(&reader.at("token"), token.expose());
    }
    let listen = listen?;
    let local = match &listen {
        Listen::Tcp(address) => address.ip().is_loopback(),
        Listen::Unix(_) => true,
        Listen::Systemd => false,
    };
    let users = admin_users(&reader.at("users"), file, token.as_ref());
    if !local && file.token.is_none() && file.users.is_empty() {
        reader.at("token").report(Problem::Missing("a token, since admin.listen is not on loopback"));
    }
    let fixed = !matches!(&listen, Listen::Tcp(address) if address.port() == 0);
    if fixed && server.listen.contains(&listen) {
        at.report(Problem::expected("the same address as server.listen", "a different one"));
    } else if server.listen.iter().any(|push| overlap(push, &listen)) {
        at.report(Problem::expected("the same port as server.listen, on all addresses", "a different port"));
    }
    let console = reader.read("console", &file.console, value::boolean).unwrap_or(true);
    let console_hosts = file.console_hosts.as_ref().map_or_else(Vec::new, |hosts| hosts.0.clone());
    Some(admin::Settings { listen, token, users, console, console_hosts })
}

/// `[admin.users]`
fn admin_users(reader: &KeyReader<'_>, file: &file::AdminSection, admin: Option<&Secret>) -> Vec<admin::User> {
    let mut users: Vec<admin::User> = Vec::new();
    for (name, section) in &file.users {
        let reader = reader.at(name);
        accounts::check_name(&reader, name);
        if name == admin::ADMIN {
            reader.report(Problem::expected("the name of the holder of admin.token", "a different one"));
        }
        if section.token.is_none() {
            reader.at("token").report(Problem::Missing("a token, different from all others"));
        }
        let role = reader.require("role", &section.role, "\"operator\" or \"viewer\"", |text| match text {
            "operator" => Ok(admin::UserRole::Operator),
            "viewer" => Ok(admin::UserRole::Viewer),
            _ => Err("\"operator\" or \"viewer\""),
        });
        let (Some(token), Some(role)) = (reader.secret("token", &section.token), role) else { continue };
        let reader = reader.at("token");
        check_bearer(&reader, token.expose());
        let is_taken = |other: &Secret| other.matches(token.expose());
        if users.iter().map(|user| &user.token).chain(admin).any(is_taken) {
            reader.report(Problem::expected("the token of another user or admin.token", "a token of the user's own"));
        }
        users.push(admin::User { name: name.as_str().into(), token, role });
    }
    users
}

fn check_bearer(reader: &KeyReader<'_>, token: &str) {
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        reader.report(Problem::Secret("visible ASCII characters without blanks, at least one"));
    } else if token.len() < SHORT_TOKEN {
        reader.warn(format_args!("a token of less than {SHORT_TOKEN} characters can be guessed"));
    }
}

/// `[log]`
pub(super) fn log(reader: &KeyReader<'_>, file: &file::LogSection) -> telemetry::Settings {
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
        format: reader.read("format", &file.format, format),
        level: reader.read("level", &file.level, level).unwrap_or_else(|| "info".to_owned()),
        openid: reader.read("openid", &file.openid, openid).unwrap_or(OpenIds::Hash),
    }
}

/// `[telemetry]`
pub(super) fn telemetry(reader: &KeyReader<'_>, file: &file::TelemetrySection) -> otlp::Settings {
    let name = |text: &str| if text.trim().is_empty() { Err("a name such as \"wxrelay\"") } else { Ok(text.into()) };
    otlp::Settings {
        // Some collectors identify their customer by the URL, so it is not shown.
        url: reader.parse_secret("otlp", &file.otlp, |text| value::collector(text).map_err(Problem::Secret)),
        headers: targets::headers(&reader.at("headers"), &file.headers),
        service_name: reader.read("service_name", &file.service_name, name).unwrap_or_else(|| "wxrelay".into()),
    }
}
