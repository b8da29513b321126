//! The settings of the engine, and the parsing of the database's URL.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use crate::secret::Secret;

/// PostgreSQL's own limit for names.
const MAX_NAME: usize = 63;
const DEFAULT_PORT: u16 = 5432;
/// Some hours of a busy account.
pub const DEFAULT_SPOOL_SIZE: u64 = 1 << 30;
/// The parameters of a URL that say where to connect, as whom.
const ACCEPTED: [&str; 5] = ["host", "port", "user", "password", "dbname"];

/// How the engine reaches PostgreSQL, and what it asks of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From `url`: where to connect, as whom.
    pub server: Server,
    /// Replaces the password of the URL.
    pub password: Option<PasswordSource>,
    /// How connections are protected.
    pub tls: TlsMode,
    /// The schema that holds the tables.
    pub schema: String,
    /// Whether there is a pooler in transaction mode between: nothing is set per session, no statement is named.
    pub pooler: bool,
    /// What a missing synchronous standby means.
    pub standby: Standby,
    /// Whether a server is used that does not flush what it confirms.
    pub accept_weak_durability: bool,
    /// The name of this replica, for people.
    pub replica: String,
    /// The folder where pushes wait while PostgreSQL is away; none = they are refused.
    pub spool: Option<PathBuf>,
    /// The most bytes that the spool may take.
    pub spool_size: u64,
}

/// Where the password comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordSource {
    /// The configuration itself, or a variable of the environment.
    Text(Secret),
    /// A file, which is read again at every connect.
    File(PathBuf),
}

/// How connections are protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// By TLS, with the server's certificate and name verified. Not used on a Unix socket, which has none.
    Verified {
        /// A PEM file of the certificates to trust instead of the system's.
        ca: Option<PathBuf>,
        /// PEM files of our own certificate and key.
        client: Option<(PathBuf, PathBuf)>,
    },
    /// Not at all: for Unix sockets and loopback addresses only.
    Off,
}

/// What a missing synchronous standby means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standby {
    /// It is logged and shown.
    Warn,
    /// The replica is not ready.
    Required,
    /// Nothing: the service replicates below PostgreSQL.
    None,
}

/// What the database's URL says.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    /// In the order in which they are tried.
    pub addresses: Vec<Address>,
    /// The role.
    pub user: String,
    /// The name of the database.
    pub database: String,
    /// The password in the URL.
    pub password: Option<Secret>,
}

/// One server of the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, or the folder of a Unix socket.
    pub host: ServerHost,
    /// Also a part of a Unix socket's name.
    pub port: u16,
}

/// A server's host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerHost {
    /// A name or an IP address.
    Tcp(String),
    /// The folder of a Unix socket.
    Unix(PathBuf),
}

/// Why the settings are unusable. Shows no part of the URL but hosts, as a mistyped one has parts of the password
/// anywhere.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// It is not the URL of a PostgreSQL server.
    #[error("not a URL of PostgreSQL: it does not start with postgres:// or postgresql://")]
    Scheme,
    /// It has no host.
    #[error("the URL has no host")]
    NoHost,
    /// It has no user.
    #[error("the URL has no user")]
    NoUser,
    /// A host has characters that no name has.
    #[error("a host of the URL has characters that no host name has")]
    Host,
    /// It has as many ports as hosts, or one, or none; this one does not.
    #[error("the URL has another number of ports than of hosts")]
    Ports,
    /// It cannot be parsed.
    #[error("the URL cannot be parsed")]
    Syntax,
    /// A parameter that belongs to a key of its own.
    #[error("the URL has the parameter {name}")]
    Parameter {
        /// Its name, which is one of libpq's.
        name: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A parameter that is none of libpq's.
    #[error("the URL has an unknown parameter")]
    UnknownParameter,
    /// The schema's name would have to be quoted.
    #[error("the schema's name is not usable")]
    Schema,
    /// Without TLS, over a network.
    #[error("tls is \"off\", and {host} is neither a Unix socket nor a loopback address")]
    TlsOff {
        /// The host.
        host: String,
    },
}

impl SettingsError {
    /// How to fix it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Scheme | Self::NoHost | Self::NoUser => "write it as postgres://USER@HOST:5432/DATABASE",
            Self::Host | Self::Syntax => {
                "write the characters @ : / ? # % of a user or password as %40 %3A %2F %3F %23 %25, or set queue.password"
            }
            Self::Ports => "write each host with its port: postgres://USER@HOST1:5432,HOST2:5432/DATABASE",
            Self::Parameter { remedy, .. } => remedy,
            Self::UnknownParameter => {
                "remove it; if it is a part of the password, write the character ? in it as %3F, or set queue.password"
            }
            Self::Schema => "use lower-case letters, digits and _, at most 63, the first no digit",
            Self::TlsOff { .. } => {
                "remove `tls = \"off\"`, and set queue.tls.ca if the server's certificate is your own"
            }
        }
    }
}

impl Settings {
    /// The settings of a URL, everything else as it is by default.
    ///
    /// # Errors
    /// If the URL is unusable.
    pub fn new(url: &str) -> Result<Self, SettingsError> {
        Ok(Self {
            server: Server::parse(url)?,
            password: None,
            tls: TlsMode::default(),
            schema: "wxrelay".to_owned(),
            pooler: false,
            standby: Standby::Warn,
            accept_weak_durability: false,
            replica: host_name(),
            spool: None,
            spool_size: DEFAULT_SPOOL_SIZE,
        })
    }

    /// Checks what can be checked without connecting.
    ///
    /// # Errors
    /// If a setting is unusable, or two contradict each other.
    pub fn check(&self) -> Result<(), SettingsError> {
        if !is_schema_name(&self.schema) {
            return Err(SettingsError::Schema);
        }
        if self.tls == TlsMode::Off
            && let Some(remote) = self.server.addresses.iter().find(|address| !address.is_local())
        {
            return Err(SettingsError::TlsOff { host: remote.to_string() });
        }
        Ok(())
    }
}

impl Default for TlsMode {
    fn default() -> Self {
        Self::Verified { ca: None, client: None }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addresses, user, database, password: _ } = self;
        f.debug_struct("Server")
            .field("addresses", addresses)
            .field("user", user)
            .field("database", database)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Parses a URL.
    ///
    /// # Errors
    /// If it is no URL of PostgreSQL, or says more than where to connect, as whom.
    pub fn parse(url: &str) -> Result<Self, SettingsError> {
        let url = url.trim();
        let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
        if !is_postgres {
            return Err(SettingsError::Scheme);
        }
        check_parameters(url)?;
        let config: Config = url.parse().map_err(|_| SettingsError::Syntax)?;
        let user = config.get_user().filter(|user| !user.is_empty()).ok_or(SettingsError::NoUser)?;
        let database = config.get_dbname().filter(|name| !name.is_empty()).unwrap_or(user);
        let password = match config.get_password() {
            None => None,
            Some(password) => Some(Secret::new(str::from_utf8(password).map_err(|_| SettingsError::Syntax)?)),
        };
        let addresses = addresses(&config)?;
        Ok(Self { addresses, user: user.to_owned(), database: database.to_owned(), password })
    }
}

fn addresses(config: &Config) -> Result<Vec<Address>, SettingsError> {
    let (hosts, ports) = (config.get_hosts(), config.get_ports());
    if hosts.is_empty() {
        return Err(SettingsError::NoHost);
    }
    let port = |at: usize| match ports {
        [] => Ok(DEFAULT_PORT),
        [one] => Ok(*one),
        many if many.len() == hosts.len() => Ok(many[at]),
        _ => Err(SettingsError::Ports),
    };
    let address = |(at, host): (usize, &Host)| {
        let host = match host {
            Host::Tcp(name) if name.is_empty() => return Err(SettingsError::NoHost),
            Host::Tcp(name) if is_host_name(name) => ServerHost::Tcp(name.clone()),
            Host::Tcp(_) => return Err(SettingsError::Host),
            Host::Unix(folder) => ServerHost::Unix(folder.clone()),
        };
        Ok(Address { host, port: port(at)? })
    };
    hosts.iter().enumerate().map(address).collect()
}

/// Refuses the parameters that would change what the engine relies on, and those that have a key of their own.
fn check_parameters(url: &str) -> Result<(), SettingsError> {
    let Some((_, query)) = url.split_once('?') else { return Ok(()) };
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let name = parameter.split('=').next().unwrap_or_default();
        if ACCEPTED.contains(&name) {
            continue;
        }
        return Err(match REFUSED.iter().find(|(refused, _)| *refused == name) {
            Some((name, remedy)) => SettingsError::Parameter { name, remedy },
            None => SettingsError::UnknownParameter,
        });
    }
    Ok(())
}

const TLS: &str = "remove it, and say in queue.tls how the server is verified";
const OURS: &str = "remove it: the relay sets it itself";
const REFUSED: [(&str, &str); 22] = [
    ("sslmode", TLS),
    ("sslrootcert", TLS),
    ("sslcert", TLS),
    ("sslkey", TLS),
    ("sslnegotiation", TLS),
    ("ssl", TLS),
    ("channel_binding", TLS),
    ("requiressl", TLS),
    ("gssencmode", TLS),
    ("passfile", "remove it, and set queue.password = { file = \"PATH\" }"),
    ("schema", "remove it, and set queue.schema"),
    ("currentSchema", "remove it, and set queue.schema"),
    ("search_path", "remove it, and set queue.schema"),
    ("pgbouncer", "remove it, and set queue.pooler = true"),
    ("target_session_attrs", "remove it: of several hosts the relay uses the one that accepts writes"),
    ("connect_timeout", OURS),
    ("application_name", OURS),
    ("options", OURS),
    ("keepalives", OURS),
    ("keepalives_idle", OURS),
    ("tcp_user_timeout", OURS),
    ("load_balance_hosts", OURS),
];

impl Address {
    /// Whether what is sent stays on this machine.
    pub fn is_local(&self) -> bool {
        match &self.host {
            ServerHost::Unix(_) => true,
            ServerHost::Tcp(name) => {
                name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            ServerHost::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            ServerHost::Tcp(name) => write!(f, "{name}:{}", self.port),
            ServerHost::Unix(folder) => write!(f, "{}/.s.PGSQL.{}", folder.display(), self.port),
        }
    }
}

fn is_host_name(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'))
}

fn is_schema_name(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    // PostgreSQL keeps the names that start with pg_ for itself.
    starts
        && name.len() <= MAX_NAME
        && !name.starts_with("pg_")
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(url: &str) -> Vec<String> {
        Server::parse(url).unwrap().addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_url_says_where_to_connect_and_as_whom() {
        let server = Server::parse("postgres://wx:p%40ss@pg1,pg2:6432/wxrelay").unwrap();
        assert_eq!((server.user.as_str(), server.database.as_str()), ("wx", "wxrelay"));
        assert_eq!(server.password.as_ref().unwrap().expose(), "p@ss");
        assert_eq!(addresses("postgresql://wx@pg1"), ["pg1:5432"]);
        assert_eq!(addresses("postgres://wx@pg1:1,pg2:2/x"), ["pg1:1", "pg2:2"]);
        assert_eq!(addresses("postgres://wx@[::1]:7/x"), ["[::1]:7"]);
        assert_eq!(addresses("postgres://wx@%2Frun%2Fpg/x"), ["/run/pg/.s.PGSQL.5432"]);
        assert_eq!(addresses("postgres:///x?host=/run/pg&user=wx"), ["/run/pg/.s.PGSQL.5432"]);
        assert_eq!(Server::parse("postgres://wx@pg1").unwrap().database, "wx");
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused_without_showing_it() {
        let of = |url: &str| Server::parse(url).unwrap_err();
        assert_eq!(of("mysql://wx:hunter2@pg1/x"), SettingsError::Scheme);
        assert_eq!(of("host=pg1 user=wx"), SettingsError::Scheme);
        assert_eq!(of("postgres://"), SettingsError::NoUser);
        assert_eq!(of("postgres://wx@/x"), SettingsError::NoHost);
        assert_eq!(of("postgres://pg1/x"), SettingsError::NoUser);
        assert_eq!(of("postgres://wx@hun!ter2/x"), SettingsError::Host);
        assert_eq!(of("postgres://wx:hunter?2=@pg1/x"), SettingsError::UnknownParameter);
        assert_eq!(of("postgres://wx@pg1:99999/x"), SettingsError::Syntax);
        for (name, remedy) in REFUSED {
            let error = of(&format!("postgres://wx:hunter2@pg1/x?{name}=1"));
            assert_eq!(error, SettingsError::Parameter { name, remedy });
        }
        for error in [of("postgres://wx@hun!ter2/x"), of("postgres://wx:hunter2@pg1:99999/x")] {
            assert!(!error.to_string().contains("hun") && error.remedy().contains("%40"), "{error}");
        }
        let shown = format!("{:?}", Settings::new("postgres://wx:hunter2@pg1/x").unwrap());
        assert!(!shown.contains("hunter2") && shown.contains("pg1"), "{shown}");
    }

    #[test]
    fn tls_is_off_on_this_machine_alone() {
        let settings = |url: &str| Settings { tls: TlsMode::Off, ..Settings::new(url).unwrap() };
        for local in ["postgres://wx@localhost/x", "postgres://wx@127.0.0.1,[::1]/x", "postgres:///x?host=/run&user=x"]
        {
            assert_eq!(settings(local).check(), Ok(()), "{local}");
        }
        for remote in ["postgres://wx@pg1/x", "postgres://wx@127.0.0.1,10.0.0.1/x", "postgres://wx@localhost.test/x"] {
            assert!(matches!(settings(remote).check(), Err(SettingsError::TlsOff { .. })), "{remote}");
        }
    }

    #[test]
    fn a_schema_is_named_without_quotes() {
        for (name, is_usable) in [("wxrelay", true), ("_a1", true), ("1a", false), ("A", false), ("a-b", false)] {
            assert_eq!(is_schema_name(name), is_usable, "{name}");
        }
        assert!(!is_schema_name("") && !is_schema_name("pg_x") && !is_schema_name(&"a".repeat(64)));
    }
}
