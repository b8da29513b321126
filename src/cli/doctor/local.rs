//! The relay on this machine: the certificate that it serves, where it listens, and whether it runs.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::LIMIT;
use super::chain::{Leaf, Trust, is_for, is_unvouched, refusal};
use super::exchange::{handshake, verify};
use super::report::{Check, Line};
use crate::bounded_file;
use crate::cli::api::Api;
use crate::cli::simulate::ServerUrl;
use crate::config::Config;
use crate::push::Account;
use crate::queue::Holder;
use crate::server::{Certificate, Listen, bind, tls};

/// A line for each certificate of `server.tls`: do the files parse, does the key fit, how long do they last, is the chain
/// whole? The last one needs somebody to trust.
pub(super) fn certificates(config: &Config, hosts: &[&str], trust: Option<&dyn ServerCertVerifier>) -> Vec<Line> {
    let sources = &config.server.tls;
    let chains: Vec<_> = sources.iter().map(chain).collect();
    // As the relay chooses: the first that has the name, or the first of all.
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
) -> Line {
    let check = Check::new("certificate", source.chain().display());
    let loaded = match source {
        Certificate::Files(_) => tls::Acceptor::load(std::slice::from_ref(source), false).map(|_| true),
        Certificate::Acme(settings) => tls::is_stored(settings),
    };
    match (loaded, source) {
        (Ok(true), _) => {}
        (Ok(false), _) => {
            return check.warning(
                "none yet: the relay orders it while it runs",
                "port 443 of its domains must reach server.listen; the relay's log tells of the order: server.tls.acme",
            );
        }
        (Err(error), Certificate::Files(_)) => {
            let told = error.to_string();
            let expected = "expected PEM, as certbot and acme.sh write it";
            let (text, remedy) = told.split_once(": ").unwrap_or((&told, expected));
            return check.failed(text, remedy);
        }
        (Err(error), Certificate::Acme(_)) => {
            let remedy = "run this as the relay's own user; if it is the same then, the relay orders another one";
            return check.warning(error.to_string(), remedy);
        }
    }
    let Some(leaf) = Leaf::of(chain) else {
        return check.failed("the first certificate cannot be read", "put the server's own certificate first");
    };
    let hosts: Vec<_> = if hosts.is_empty() { leaf.some_name().into_iter().collect() } else { owned(hosts) };
    for host in &hosts {
        if let Some(Err(error)) = trust.map(|trust| trusted(chain, host, trust)) {
            let Some((text, remedy)) = refusal(&error, chain, host) else { continue };
            // A proxy in front may trust what WeChat does not; a chain without its middle fails there too.
            let fatal = !is_unvouched(&error) || chain.len() == 1 && !leaf.is_self_issued();
            return if fatal { check.failed(text, remedy) } else { check.warning(text, remedy) };
        }
    }
    leaf.lasts(&check, &format!("fits its key, {} certificates, for {leaf}", chain.len()))
}

fn owned(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|host| (*host).to_owned()).collect()
}

/// Empty if it cannot be read, which the relay's own code tells better.
fn chain(source: &Certificate) -> Vec<CertificateDer<'static>> {
    bounded_file::read_certificates(source.chain()).unwrap_or_default()
}

fn trusted(chain: &[CertificateDer<'_>], host: &str, trust: &dyn ServerCertVerifier) -> Result<(), rustls::Error> {
    let (Some((leaf, intermediates)), Ok(name)) = (chain.split_first(), ServerName::try_from(host)) else {
        return Ok(());
    };
    trust.verify_server_cert(leaf, intermediates, &name, &[], UnixTime::now()).map(drop)
}

/// A line for each place of `server.listen`.
pub(super) async fn listeners(config: &Config) -> Vec<Line> {
    let mut lines = Vec::new();
    for listen in &config.server.listen {
        let check = Check::new("listen", listen);
        let line = timeout(LIMIT, listener(&check, listen, config)).await;
        lines.push(line.unwrap_or_else(|_| {
            check.failed(format!("no answer within {LIMIT:?}"), "look at what listens there: ss -ltnp")
        }));
    }
    lines
}

async fn listener(check: &Check, listen: &Listen, config: &Config) -> Line {
    match (listen, listen.reachable()) {
        (Listen::Unix(path), _) => match UnixStream::connect(path).await {
            Ok(_) => check.ok("takes connections"),
            Err(_) if !path.exists() => check.ok("nobody listens there now"),
            Err(error) => check.warning(format!("takes no connection ({error})"), "does the relay run?"),
        },
        (Listen::Systemd, _) => check.warning(
            "not looked at: only systemd knows the address",
            "systemctl status wxrelay.socket; and give --url with the URL as it stands in WeChat's console",
        ),
        (Listen::Tcp(_), None) => check.warning("not looked at: the system chooses the port", "give it a fixed port"),
        (Listen::Tcp(_), Some(address)) => match TcpStream::connect(address).await {
            Err(_) => free(check, listen).await,
            Ok(_) => verification(check, address, config).await,
        },
    }
}

/// Asks for every account that takes a request of this machine.
async fn verification(check: &Check, address: SocketAddr, config: &Config) -> Line {
    const BY_URL: &str = "give --url with the URL as it stands in WeChat's console";
    if config.server.proxy_protocol {
        return check.warning("takes connections; not asked, as a PROXY header comes first there", BY_URL);
    }
    let own = served(config);
    if own.is_none() && !config.server.tls.is_empty() {
        return check.warning("takes connections; not asked, as no certificate is here to be read", BY_URL);
    }
    let denies = |account: &Account| account.allow_from.as_ref().is_some_and(|from| from.denies(Some(address.ip())));
    let (denied, asked): (Vec<_>, Vec<_>) = config.accounts.iter().partition(|account| denies(account));
    for account in &asked {
        if let Err((text, remedy)) = ask(address, account, own.clone()).await {
            return check.failed(text, remedy);
        }
    }
    let names = |accounts: &[&Account]| accounts.iter().map(|account| &*account.name).collect::<Vec<_>>().join(", ");
    match &denied[..] {
        [] => check.ok(format!("takes WeChat's verification for {}", names(&asked))),
        denied => check.warning(format!("{}: not asked, as allow_from denies this machine", names(denied)), BY_URL),
    }
}

/// Nobody listens there: could we?
async fn free(check: &Check, listen: &Listen) -> Line {
    match bind(listen).await {
        Ok(_) => check.ok("free: nobody listens there now, and this user may"),
        Err(error) => {
            let told = error.to_string();
            let (text, remedy) = told.rsplit_once(": ").unwrap_or((&told, ""));
            check.failed(text, remedy)
        }
    }
}

/// What the relay shows to who asks for no name: the first certificate that there is.
fn served(config: &Config) -> Option<CertificateDer<'static>> {
    config.server.tls.iter().find_map(|source| chain(source).into_iter().next())
}

/// The verification, over TLS where the relay serves a certificate of its own.
async fn ask(
    address: SocketAddr,
    account: &Account,
    own: Option<CertificateDer<'static>>,
) -> Result<(), (String, &'static str)> {
    const OTHER: &str = "is it this relay that listens there, with this configuration? See ss -ltnp, and reload it";
    let scheme = if own.is_some() { "https" } else { "http" };
    let url: ServerUrl = format!("{scheme}://{address}{}", account.path)
        .parse()
        .map_err(|error| (format!("accounts.{}.path makes no URL ({error})", account.name), OTHER))?;
    let stream = TcpStream::connect(address).await.map_err(|error| (format!("no connection ({error})"), OTHER))?;
    let verified = match own {
        None => verify(stream, &url, &account.credentials).await,
        Some(own) => {
            let name = Leaf::of(std::slice::from_ref(&own)).and_then(|leaf| leaf.some_name());
            let host = name.unwrap_or_else(|| "localhost".to_owned());
            let shaken = handshake(stream, &host, Trust::Own(own)).await;
            let (stream, _) = shaken?;
            verify(stream, &url, &account.credentials).await
        }
    };
    verified.result.map_err(|refused| (format!("accounts.{}: {}", account.name, refused.into_text()), OTHER))
}

/// Whether a relay runs by this configuration, and what it says of itself.
pub(super) async fn admin(config: Arc<Config>, holder: Option<Holder>) -> Line {
    let check = Check::new("admin", &config.admin.listen);
    let api = match Api::of(&config) {
        Ok(api) => api,
        Err(error) => return check.warning(format!("not asked: {error}"), ""),
    };
    let (status, told) = match (api.call(Method::GET, "/api/status", None).await, holder) {
        (Ok(answer), _) => answer,
        (Err(_), None) => {
            return check.warning("no relay is running", "start it: wxrelay serve, or systemctl start wxrelay");
        }
        (Err(_), Some(Holder { pid })) => {
            let who = pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
            let remedy = "was it started with another admin.listen? Then restart it, since a reload keeps its sockets";
            return check.warning(format!("{who} uses the store, and nobody answers here"), remedy);
        }
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => check.failed(
            format!("answered {status}"),
            "admin.token here is not that of the running relay: restart it, or ask with its configuration",
        ),
        status if !status.is_success() || told["config_sha256"].is_null() => check
            .failed(format!("answered {status}, not as a relay would"), "something else listens there: see ss -ltnp"),
        _ if told["ready"] != true => {
            let why = told["not_ready_because"].as_str().unwrap_or("unknown").to_owned();
            check.failed(format!("a relay runs and is not ready: {why}"), "look into its log; /readyz says when it is")
        }
        _ if told["config_sha256"] != *config.sha256 => check.warning(
            "a relay runs, ready, with another configuration",
            "reload it: systemctl reload wxrelay, or SIGHUP",
        ),
        _ => {
            let version = told["version"].as_str().unwrap_or("?");
            check.ok(format!("a relay runs, ready, with this configuration, release {version}"))
        }
    }
}
