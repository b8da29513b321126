//! The relay on this machine: its certificate, its listeners, and whether it runs.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::either::Either;

use super::LIMIT;
use super::chain::{LeafCertificate, TrustPolicy, explain_rejection, is_for, is_untrusted_only};
use super::exchange::{VerificationError, handshake, verify};
use super::report::{CheckFailure, CheckResult, DoctorCheck};
use crate::bounded_file;
use crate::cli::api::Api;
use crate::cli::simulate::ServerUrl;
use crate::config::Config;
use crate::push::Account;
use crate::queue::LockHolder;
use crate::server::{Certificate, Listen, bind, tls};

/// One result for each certificate of `server.tls`: whether the files parse and the key matches, when it expires, and
/// whether the chain is complete. The check of the chain needs a trust store.
pub(super) fn certificates(
    config: &Config,
    hosts: &[&str],
    trust: Option<&dyn ServerCertVerifier>,
) -> Vec<CheckResult> {
    let sources = &config.server.tls;
    let chains: Vec<_> = sources.iter().map(chain).collect();
    // The relay selects the same way: the first certificate for the name, else the first of all.
    let of = |host: &str| chains.iter().position(|chain| is_for(chain, host)).unwrap_or(0);
    let line = |(index, source): (usize, &Certificate)| {
        let hosts: Vec<_> = hosts.iter().copied().filter(|host| of(host) == index).collect();
        certificate(source, &chains[index], &hosts, trust)
    };
    sources.iter().enumerate().map(line).collect()
}

fn certificate(
    source: &Certificate,
    chain: &[CertificateDer<'_>],
    hosts: &[&str],
    trust: Option<&dyn ServerCertVerifier>,
) -> CheckResult {
    let check = DoctorCheck::new("certificate", source.chain().display());
    if matches!(source, Certificate::Acme(settings) if settings.shared) {
        return check.ok("in PostgreSQL, for all replicas: a running relay shows it, by wxrelay_tls_expiry_timestamp_seconds and at --url");
    }
    let loaded = match source {
        Certificate::Files(_) => tls::Acceptor::load(std::slice::from_ref(source), false).map(|_| true),
        Certificate::Acme(settings) => tls::is_stored(settings),
    };
    match (loaded, source) {
        (Ok(true), _) => {}
        (Ok(false), _) => {
            return check.warning(
                "none yet: the relay orders it while it runs",
                "port 443 of its domains must reach server.listen; the relay's log has the order's progress: server.tls.acme",
            );
        }
        (Err(error), Certificate::Files(_)) => {
            return check.failed(error.to_string(), error.remedy());
        }
        (Err(error), Certificate::Acme(_)) => {
            let remedy = "run doctor as the relay's user; if it still fails, the relay orders a new one";
            return check.warning(error.to_string(), remedy);
        }
    }
    let Some(leaf) = LeafCertificate::of(chain) else {
        return check.failed("the first certificate cannot be read", "put the server's own certificate first");
    };
    let hosts: Vec<_> = if hosts.is_empty() { leaf.sample_name().into_iter().collect() } else { owned(hosts) };
    for host in &hosts {
        if let Some(Err(error)) = trust.map(|trust| trusted(chain, host, trust)) {
            let Some(failure) = explain_rejection(&error, chain, host) else { continue };
            // A proxy in front may trust a private authority; an incomplete chain fails there too.
            let fatal = !is_untrusted_only(&error) || chain.len() == 1 && !leaf.is_self_issued();
            return match fatal {
                true => check.failed_with(failure),
                false => check.warning(failure.text, failure.remedy),
            };
        }
    }
    leaf.check_expiry(&check, &format!("matches its key, {} certificates, for {leaf}", chain.len()))
}

fn owned(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|host| (*host).to_owned()).collect()
}

/// Empty if it cannot be read: loading it reports the error.
fn chain(source: &Certificate) -> Vec<CertificateDer<'static>> {
    bounded_file::read_certificates(source.chain()).unwrap_or_default()
}

fn trusted(chain: &[CertificateDer<'_>], host: &str, trust: &dyn ServerCertVerifier) -> Result<(), rustls::Error> {
    let (Some((leaf, intermediates)), Ok(name)) = (chain.split_first(), ServerName::try_from(host)) else {
        return Ok(());
    };
    trust.verify_server_cert(leaf, intermediates, &name, &[], UnixTime::now()).map(drop)
}

/// One result for each address of `server.listen`.
pub(super) async fn listeners(config: &Config) -> Vec<CheckResult> {
    let mut lines = Vec::new();
    for listen in &config.server.listen {
        let check = DoctorCheck::new("listen", listen);
        let line = timeout(LIMIT, listener(&check, listen, config)).await;
        lines.push(line.unwrap_or_else(|_| {
            check.failed(format!("no answer within {LIMIT:?}"), "check what listens there: ss -ltnp")
        }));
    }
    lines
}

async fn listener(check: &DoctorCheck, listen: &Listen, config: &Config) -> CheckResult {
    match (listen, listen.reachable()) {
        (Listen::Unix(path), _) => match UnixStream::connect(path).await {
            Ok(_) => check.ok("accepts connections"),
            Err(_) if !path.exists() => check.ok("nothing listens there now"),
            Err(error) => check.warning(format!("refuses connections ({error})"), "does the relay run?"),
        },
        (Listen::Systemd, _) => check.warning(
            "not checked: only systemd knows the address",
            "systemctl status wxrelay.socket, and give --url with the URL from WeChat's console",
        ),
        (Listen::Tcp(_), None) => check.warning("not checked: the system chooses the port", "give it a fixed port"),
        (Listen::Tcp(_), Some(address)) => match TcpStream::connect(address).await {
            Err(_) => free(check, listen).await,
            Ok(_) => verification(check, address, config).await,
        },
    }
}

/// Verifies every account that accepts requests from this machine.
async fn verification(check: &DoctorCheck, address: SocketAddr, config: &Config) -> CheckResult {
    const BY_URL: &str = "give --url with the URL from WeChat's console";
    if config.server.proxy_protocol {
        return check.warning("accepts connections; not verified, as a PROXY header comes first", BY_URL);
    }
    let own = default_certificate(config);
    if own.is_none() && !config.server.tls.is_empty() {
        return check.warning("accepts connections; not verified, as no certificate can be read", BY_URL);
    }
    let denies = |account: &Account| account.allow_from.as_ref().is_some_and(|from| from.denies(Some(address.ip())));
    let (denied, asked): (Vec<_>, Vec<_>) = config.accounts.iter().partition(|account| denies(account));
    for account in &asked {
        if let Err(failure) = ask(address, account, own.clone()).await {
            return check.failed_with(failure);
        }
    }
    let names = |accounts: &[&Account]| accounts.iter().map(|account| &*account.name).collect::<Vec<_>>().join(", ");
    match &denied[..] {
        [] => check.ok(format!("accepts WeChat's verification for {}", names(&asked))),
        denied => check.warning(format!("{}: not verified, as allow_from denies this machine", names(denied)), BY_URL),
    }
}

/// The result if nothing listens there: tries to bind the address.
async fn free(check: &DoctorCheck, listen: &Listen) -> CheckResult {
    match bind(listen).await {
        Ok(_) => check.ok("free: nothing listens there now, and this user may listen"),
        Err(error) => check.failed(error.to_string(), error.remedy()),
    }
}

/// The certificate that the relay serves to clients without SNI: the first.
fn default_certificate(config: &Config) -> Option<CertificateDer<'static>> {
    config.server.tls.iter().find_map(|source| chain(source).into_iter().next())
}

/// Verifies one account, over TLS if the relay serves a certificate.
async fn ask(address: SocketAddr, account: &Account, own: Option<CertificateDer<'static>>) -> Result<(), CheckFailure> {
    const OTHER: &str =
        "is it this relay that listens there, with this configuration? Check with ss -ltnp, and reload it";
    let scheme = if own.is_some() { "https" } else { "http" };
    let url: ServerUrl = format!("{scheme}://{address}{}", account.path).parse().map_err(|error| {
        CheckFailure::new(format!("accounts.{}.path is no URL path ({error})", account.name), OTHER)
    })?;
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| CheckFailure::new(format!("no connection ({error})"), OTHER))?;
    let stream = match own {
        None => Either::Right(stream),
        Some(own) => {
            let name = LeafCertificate::of(std::slice::from_ref(&own)).and_then(|leaf| leaf.sample_name());
            let host = name.unwrap_or_else(|| "localhost".to_owned());
            Either::Left(handshake(stream, &host, TrustPolicy::Own(own)).await?.0)
        }
    };
    let verified = verify(stream, &url, &account.credentials).await;
    let failure = |error: VerificationError| {
        CheckFailure::new(format!("accounts.{}: {}", account.name, error.into_text()), OTHER)
    };
    verified.result.map_err(failure)
}

/// Whether a relay runs with this configuration, and its own status.
pub(super) async fn admin(config: Arc<Config>, holder: Option<LockHolder>) -> CheckResult {
    let check = DoctorCheck::new("admin", &config.admin.listen);
    let api = match Api::configured((&config.admin).into()) {
        Ok(api) => api,
        Err(error) => return check.warning(format!("not checked: {error}"), ""),
    };
    let (status, answer) = match (api.call(Method::GET, "/api/status", None).await, holder) {
        (Ok(answered), _) => answered,
        (Err(_), None) => {
            return check.warning("no relay is running", "start it: wxrelay serve, or systemctl start wxrelay");
        }
        (Err(_), Some(LockHolder { pid })) => {
            let who = pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
            let remedy = "if it was started with another admin.listen, restart it: a reload keeps its sockets";
            return check.warning(format!("{who} uses the store, and nothing answers here"), remedy);
        }
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => check.failed(
            format!("answered {status}"),
            "admin.token differs from that of the running relay: restart it, or use its configuration",
        ),
        status if !status.is_success() || answer["config_sha256"].is_null() => check.failed(
            format!("answered {status}, not as a relay would"),
            "something else listens there: check with ss -ltnp",
        ),
        _ if answer["ready"] != true => {
            let why = answer["not_ready_because"].as_str().unwrap_or("unknown").to_owned();
            check.failed(format!("a relay runs and is not ready: {why}"), "check its log; /readyz reports when it is")
        }
        _ if answer["config_sha256"] != *config.sha256 => check.warning(
            "a relay runs, ready, with another configuration",
            "reload it: systemctl reload wxrelay, or SIGHUP",
        ),
        _ => {
            let version = answer["version"].as_str().unwrap_or("?");
            check.ok(format!("a relay runs, ready, with this configuration, release {version}"))
        }
    }
}
