//! Connecting: the servers of the URL in turn, and what each new connection is checked for.
//!
//! A server is judged by what it says of itself in the new session, never by whether it answers: a primary that was
//! demoted still answers.
//!
//! Time limits, by evidence: over a network of 300 ms a new connection takes seven round trips (TCP, the request for
//! TLS, TLS 1.3, three for SCRAM, one for the checks), 1.8 s to 2.1 s in all, so with 1 s for all of it nothing would ever
//! connect. A session has [`SESSION_TIMEOUT`], and a server that does not even accept TCP [`TCP_TIMEOUT`]. So that one
//! that hangs holds nobody up, the next one is tried beside it after [`HEAD_START`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls_platform_verifier::Verifier;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::{Config, SimpleQueryMessage};

use super::observe::has_standby;
use super::problem::{NoServer, ServerProblem};
use super::resolve::Resolver;
use super::session::{self, Session, SessionFacts};
use super::settings::{Address, PasswordSource, ServerHost, Settings, TlsMode};
use super::stream::{Established, Stream};
use crate::bounded_file;
use crate::trust::FileVerifier;

/// For one TCP connection.
const TCP_TIMEOUT: Duration = Duration::from_secs(1);
/// For TLS, the login and the checks.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server is tried alone, when there are others.
const HEAD_START: Duration = Duration::from_secs(1);
/// The oldest major version of PostgreSQL that is supported.
const OLDEST: u32 = 15;

/// Makes connections; cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    settings: Arc<Settings>,
    resolver: Resolver,
    /// The verifier by the system's certificates, which takes milliseconds to read.
    system: Arc<Mutex<Option<Arc<Verifier>>>>,
    /// The server that the last connect ended with; the next one begins with it.
    last: Arc<AtomicUsize>,
}

impl Connector {
    /// Makes no connection yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            settings: Arc::new(settings.clone()),
            resolver: Resolver::default(),
            system: Arc::default(),
            last: Arc::default(),
        }
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Connects to the first server of the URL that is reached, accepts writes and keeps what it confirms.
    ///
    /// # Errors
    /// What each of the servers said, if none will do.
    pub async fn connect(&self) -> Result<Session, NoServer> {
        let count = self.settings.server.addresses.len();
        let first = self.last.load(Ordering::Relaxed);
        let mut waiting = (0..count).map(|offset| (first + offset) % count).peekable();
        // Ends what still runs when it is dropped.
        let mut tries = JoinSet::new();
        let mut attempts = Vec::with_capacity(count);
        loop {
            if let Some(at) = waiting.next() {
                let (this, address) = (self.clone(), self.settings.server.addresses[at].clone());
                tries.spawn(async move { (at, this.connect_to(&address).await, address) });
            }
            tokio::select! {
                ended = tries.join_next() => match ended {
                    Some(Ok((at, Ok(session), _))) => {
                        self.last.store(at, Ordering::Relaxed);
                        return Ok(session);
                    }
                    Some(Ok((_, Err(problem), address))) => attempts.push((address, problem)),
                    Some(Err(error)) => return Err(interrupted(error, &self.settings)),
                    None => return Err(NoServer::of(attempts)),
                },
                () = sleep(HEAD_START), if waiting.peek().is_some() => {}
            }
        }
    }

    async fn connect_to(&self, address: &Address) -> Result<Session, ServerProblem> {
        let login = self.login().await?;
        let name = match &address.host {
            ServerHost::Unix(folder) => {
                let path = folder.join(format!(".s.PGSQL.{}", address.port));
                let stream = within("the socket", TCP_TIMEOUT, Stream::unix(&path)).await?;
                let opening = self.open(stream.map_err(ServerProblem::Unreachable)?, &login, address);
                return within("the server", SESSION_TIMEOUT, opening).await?;
            }
            ServerHost::Tcp(name) => name,
        };
        let tcp = connect_to_any(self.resolver.resolve(name, address.port).await?).await?;
        let opening = async {
            let stream = match &self.settings.tls {
                TlsMode::Off => Stream::Tcp(tcp),
                TlsMode::Verified { ca, client } => {
                    Stream::begin_tls(tcp, name, self.tls(ca.clone(), client.clone()).await?).await?
                }
            };
            self.open(stream, &login, address).await
        };
        within("the server", SESSION_TIMEOUT, opening).await?
    }

    /// Logs in on a stream, and checks the session.
    async fn open(&self, stream: Stream, login: &Config, address: &Address) -> Result<Session, ServerProblem> {
        let connected = login.connect_raw(stream, Established).await;
        let (client, connection) = connected.map_err(|error| ServerProblem::of_login(&error))?;
        // Before the settings, which an older server does not know.
        let version = connection.parameter("server_version").unwrap_or_default().to_owned();
        let major = major_version(&version);
        if major < OLDEST {
            return Err(ServerProblem::TooOld { found: version, needed: OLDEST });
        }
        let mut session = Session::start(client, connection, &self.settings, address.clone());
        let script = checks(&self.settings, major);
        let answer = session.run_script(&script).await.map_err(|error| ServerProblem::of_login(&error))?;
        session.facts = check(&answer, &self.settings)?;
        Ok(session)
    }

    /// Whom to log in as. Reads the file of the password, so that it can be changed.
    async fn login(&self) -> Result<Config, ServerProblem> {
        let server = &self.settings.server;
        let mut config = Config::new();
        config.user(&server.user).dbname(&server.database);
        // The stream is ready as it is.
        config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        config.application_name(application_name(&self.settings.replica));
        if !self.settings.pooler {
            // PgBouncer refuses it: without it, a pooler would be noticed only when a named statement is missing.
            config.options("-c jit=off");
        }
        match &self.settings.password {
            None => {
                if let Some(password) = &server.password {
                    config.password(password.expose());
                }
            }
            Some(PasswordSource::Text(password)) => {
                config.password(password.expose());
            }
            Some(PasswordSource::File(path)) => {
                let (file, path) = (path.clone(), path.clone());
                let problem = move |error: std::io::Error| ServerProblem::File { path, cause: error.to_string() };
                let (text, _) = blocking(move || bounded_file::read_text(&file).map_err(problem)).await?;
                config.password(text.strip_suffix('\n').unwrap_or(&text).trim_end_matches('\r'));
            }
        }
        Ok(config)
    }

    /// The files are read at every connect, so that they can be changed.
    async fn tls(
        &self,
        ca: Option<PathBuf>,
        client: Option<(PathBuf, PathBuf)>,
    ) -> Result<Arc<ClientConfig>, ServerProblem> {
        let system = self.system.clone();
        blocking(move || client_config(ca, client, &system)).await
    }
}

/// As `who` for `ps` and `pg_stat_activity`. PostgreSQL cuts it at 63 bytes.
fn application_name(replica: &str) -> String {
    let printable = replica.chars().filter(|c| c.is_ascii_graphic()).take(48);
    format!("wxrelay {}", printable.collect::<String>())
}

fn client_config(
    ca: Option<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
    system: &Mutex<Option<Arc<Verifier>>>,
) -> Result<Arc<ClientConfig>, ServerProblem> {
    let refused = |error: rustls::Error| ServerProblem::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(refused)?.dangerous();
    let builder = match ca {
        None => {
            let mut system = system.lock();
            let verifier = match system.clone() {
                Some(verifier) => verifier,
                None => system.insert(Arc::new(Verifier::new(provider).map_err(refused)?)).clone(),
            };
            builder.with_custom_certificate_verifier(verifier)
        }
        Some(path) => {
            let file = |cause: String| ServerProblem::File { path: path.clone(), cause };
            let trusted = certificates(&path)?;
            if trusted.is_empty() {
                return Err(file("it has no certificate".to_owned()));
            }
            let verifier = FileVerifier::new(trusted, &provider).map_err(|error| file(error.to_string()))?;
            builder.with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let Some((cert, key)) = client else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let fault = |cause: String| ServerProblem::File { path: key.clone(), cause };
    let (pem, _) = bounded_file::read(&key).map_err(|error| fault(error.to_string()))?;
    let key_der = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| fault(error.to_string()))?;
    builder.with_client_auth_cert(certificates(&cert)?, key_der).map(Arc::new).map_err(|error| fault(error.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerProblem> {
    let problem =
        |error: rustls::pki_types::pem::Error| ServerProblem::File { path: path.to_owned(), cause: error.to_string() };
    bounded_file::read_certificates(path).map_err(problem)
}

async fn connect_to_any(addresses: Vec<SocketAddr>) -> Result<tokio::net::TcpStream, ServerProblem> {
    let mut problem = ServerProblem::Resolve(std::io::Error::other("it has no address"));
    for address in addresses {
        match within("the server", TCP_TIMEOUT, Stream::tcp(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => problem = ServerProblem::Unreachable(error),
            Err(timeout) => problem = timeout,
        }
    }
    Err(problem)
}

pub(super) async fn within<T>(
    stage: &'static str,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, ServerProblem> {
    timeout(limit, work).await.map_err(|_| ServerProblem::Timeout { stage, seconds: limit.as_secs() })
}

/// Runs what blocks in a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServerProblem> + Send + 'static,
) -> Result<T, ServerProblem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(ServerProblem::Broken(error.to_string())))
}

/// A task that panicked, or whose runtime ends.
pub(super) fn interrupted(error: JoinError, settings: &Settings) -> NoServer {
    let problem = ServerProblem::Broken(error.to_string());
    NoServer::of(settings.server.addresses.first().cloned().map(|address| (address, problem)).into_iter().collect())
}

/// The number before the first dot: `15.18 (Debian 15.18-0+deb12u1)`, `18beta1`.
fn major_version(version: &str) -> u32 {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..end].parse().unwrap_or(0)
}

/// Sets the session up and asks what the server is, in one round trip: the simple protocol, which every pooler knows.
fn checks(settings: &Settings, major: u32) -> String {
    let facts = "SELECT current_setting('server_version_num'), \
                 pg_is_in_recovery(), current_setting('transaction_read_only'), current_setting('fsync'), \
                 current_setting('full_page_writes'), current_setting('synchronous_commit'), \
                 (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'), \
                 current_setting('server_encoding'), current_setting('synchronous_standby_names'), \
                 pg_backend_pid(), (SELECT extract(epoch FROM backend_start)::text FROM pg_stat_activity \
                 WHERE pid = pg_backend_pid())";
    if settings.pooler {
        return format!("{}{facts};COMMIT", session::begin(settings));
    }
    // The audit's transaction is a long one.
    let newer = if major >= 17 { "SET transaction_timeout = 0;" } else { "" };
    format!("{}{newer}{facts}", session::session_settings(settings))
}

/// Refuses a server that is not what the engine relies on.
fn check(answer: &[SimpleQueryMessage], settings: &Settings) -> Result<SessionFacts, ServerProblem> {
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let Some(row) = row else { return Err(ServerProblem::Broken("no answer to the checks".to_owned())) };
    check_facts(|at| row.get(at).unwrap_or_default(), settings)
}

fn check_facts<'a>(fact: impl Fn(usize) -> &'a str, settings: &Settings) -> Result<SessionFacts, ServerProblem> {
    if fact(1) == "t" {
        return Err(ServerProblem::ReadOnly("it is a standby"));
    }
    if fact(2) != "off" {
        return Err(ServerProblem::ReadOnly("its transactions are read-only"));
    }
    // The last one is what the role, the database or the file says: the value in force is set by ourselves.
    let durability = [("fsync", 3), ("full_page_writes", 4), ("synchronous_commit", 5), ("synchronous_commit", 6)];
    let weak = durability.into_iter().find(|(_, at)| !matches!(fact(*at), "on" | "remote_apply"));
    if let Some((setting, at)) = weak
        && !settings.accept_weak_durability
    {
        return Err(ServerProblem::Weak { setting, found: fact(at).to_owned() });
    }
    if fact(7) != "UTF8" {
        return Err(ServerProblem::Encoding(fact(7).to_owned()));
    }
    Ok(SessionFacts {
        version: fact(0).parse().unwrap_or(0),
        has_standby: has_standby(fact(8)),
        weakness: weak.map(|(setting, _)| setting),
        process: fact(9).parse().unwrap_or(0),
        started: fact(10).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_number_before_the_first_dot() {
        let versions = [("15.18 (Debian 15.18-0+deb12u1)", 15), ("18beta1", 18), ("9.6.24", 9), ("", 0), ("x", 0)];
        for (text, major) in versions {
            assert_eq!(major_version(text), major, "{text}");
        }
    }

    #[test]
    fn a_server_is_judged_by_what_it_says_of_itself() {
        let settings = Settings::new("postgres://wx@pg1/x").unwrap();
        let good = ["150018", "f", "off", "on", "on", "on", "on", "UTF8", "", "7", "1.5"];
        let with = |at: usize, value: &'static str| {
            let mut facts = good;
            facts[at] = value;
            check_facts(|at| facts[at], &settings).map_err(|problem| problem.to_string())
        };
        let facts = with(8, "b").unwrap();
        assert_eq!((facts.version, facts.has_standby, facts.weakness, facts.process), (150_018, true, None, 7));
        assert!(!with(8, " ").unwrap().has_standby && with(5, "remote_apply").is_ok());
        for (at, value, text) in [
            (1, "t", "the server accepts no writes: it is a standby"),
            (2, "on", "the server accepts no writes: its transactions are read-only"),
            (3, "off", "fsync is off, so a confirmed commit can be lost"),
            (4, "off", "full_page_writes is off, so a confirmed commit can be lost"),
            (5, "local", "synchronous_commit is local, so a confirmed commit can be lost"),
            (6, "remote_write", "synchronous_commit is remote_write, so a confirmed commit can be lost"),
            (7, "SQL_ASCII", "the database has the encoding SQL_ASCII, and the relay needs UTF8"),
        ] {
            assert_eq!(with(at, value).unwrap_err(), text);
        }
        let accepting = Settings { accept_weak_durability: true, ..settings.clone() };
        let mut facts = good;
        facts[3] = "off";
        assert_eq!(check_facts(|at| facts[at], &accepting).unwrap().weakness, Some("fsync"));
    }
}
