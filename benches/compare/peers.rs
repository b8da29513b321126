//! The peers as processes: each on a port of its own, in front of the same handler, stopped after the round.

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;

use super::load::ConnectionUse;
use super::support::relay::{Relay, memory, processor};
use super::support::tls::Certificate;
use super::support::wechat::{KEY, account};

/// A compared program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Nginx,
    Haproxy,
    /// `mode2.mjs`
    Sample,
    /// The relay without a target: it verifies, decrypts, stores and answers.
    Relay,
    /// The relay with a delivery of each push.
    RelayDelivers,
}

/// The environment of the peers.
pub(crate) struct Environment {
    handler: SocketAddr,
    certificate: Certificate,
    /// The certificate's.
    _folder: TempDir,
}

/// A running peer; killed when dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    process: Process,
    /// Its store and configuration.
    _folder: TempDir,
}

enum Process {
    Relay(Relay),
    Other(Child),
}

impl Peer {
    pub(crate) const ALL: [Self; 5] = [Self::Nginx, Self::Haproxy, Self::Sample, Self::Relay, Self::RelayDelivers];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Sample => "mode2.mjs",
            Self::Relay => "relay",
            Self::RelayDelivers => "relay, delivers",
        }
    }

    /// Where its program is.
    fn program(self) -> Option<PathBuf> {
        let name = match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Sample => "node",
            Self::Relay | Self::RelayDelivers => return Some(PathBuf::new()),
        };
        // Not everybody has /usr/sbin on the path.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        path.split(':').map(|folder| PathBuf::from(folder).join(name)).find(|file| file.exists())
    }
}

impl Environment {
    pub(crate) fn new(handler: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let certificate = Certificate::new(folder.path());
        let environment = Self { handler, certificate, _folder: folder };
        for peer in Peer::ALL.into_iter().filter(|peer| !environment.has(*peer)) {
            println!("  {} is left out: it is not installed", peer.name());
        }
        environment
    }

    pub(crate) fn has(&self, peer: Peer) -> bool {
        peer.program().is_some()
    }

    /// Each sender has its own store of sessions: a shared one keeps eight tickets, and many senders would lose some.
    pub(crate) fn connector(&self, connections: ConnectionUse) -> Option<TlsConnector> {
        match connections {
            ConnectionUse::Kept | ConnectionUse::Each => None,
            ConnectionUse::TlsFull => Some(self.certificate.connector()),
            ConnectionUse::TlsResumed => Some(self.certificate.resuming_connector()),
            ConnectionUse::Tls12Resumed => Some(self.certificate.resuming_connector_of_old()),
        }
    }

    pub(crate) async fn start(&self, peer: Peer, tls: bool) -> Running {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (process, address) = match peer {
            Peer::Relay | Peer::RelayDelivers => {
                let relay = self.relay(folder.path(), peer == Peer::RelayDelivers, tls).await;
                let address = relay.push;
                (Process::Relay(relay), address)
            }
            Peer::Nginx | Peer::Haproxy | Peer::Sample => {
                let address = free_address();
                let mut command = Command::new(peer.program().expect("it is installed"));
                match peer {
                    Peer::Nginx => {
                        command.arg("-p").arg(folder.path()).arg("-c").arg(self.nginx(folder.path(), address, tls))
                    }
                    Peer::Haproxy => command.arg("-db").arg("-f").arg(self.haproxy(folder.path(), address, tls)),
                    _ => command.args(self.sample(address, tls)),
                };
                let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
                (Process::Other(child.expect("the program starts")), address)
            }
        };
        let mut tries = 0;
        while TcpStream::connect(address).await.is_err() {
            tries += 1;
            assert!(tries < 500, "{} does not listen", peer.name());
            sleep(Duration::from_millis(10)).await;
        }
        Running { address, process, _folder: folder }
    }

    async fn relay(&self, folder: &Path, delivers: bool, tls: bool) -> Relay {
        let to = if delivers { "\"app\"" } else { "" };
        let target = format!("[targets.app]\nurl = \"http://{}/\"\nconcurrency = 64\n", self.handler);
        let route = format!("[[accounts.shop.routes]]\notherwise = true\nto = [{to}]\n");
        let server = if tls { self.certificate.setting() } else { String::new() };
        Relay::start_with(folder, &server, "", &(account() + &route + &target)).await
    }

    fn nginx(&self, folder: &Path, address: SocketAddr, tls: bool) -> PathBuf {
        let (cert, key) = self.certificate.files();
        let ssl = format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_session_cache shared:s:8m; ssl_protocols TLSv1.2 TLSv1.3;",
            cert.display(),
            key.display()
        );
        let (flag, ssl) = if tls { ("ssl", ssl.as_str()) } else { ("", "") };
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind}; ", folder.display()))
            .concat();
        let text = format!(
            "daemon off; worker_processes 2; pid {0}/pid; error_log {0}/errors;\nevents {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 100000000; {temporary}\n\
             upstream handler {{ server {1}; keepalive 512; }}\n\
             server {{ listen {address} reuseport backlog=4096 {flag}; {ssl}\n\
             location / {{ proxy_pass http://handler; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n",
            folder.display(),
            self.handler,
        );
        write(folder, "nginx.conf", text)
    }

    fn haproxy(&self, folder: &Path, address: SocketAddr, tls: bool) -> PathBuf {
        let (cert, key) = self.certificate.files();
        let pem = [cert, key].map(|file| fs::read_to_string(file).expect("the certificate is there")).concat();
        let ssl = format!("ssl crt {}", write(folder, "both.pem", pem).display());
        let text = format!(
            "global\n  maxconn 8192\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n  \
             http-reuse always\nlisten pushes\n  bind {address} backlog 4096 {}\n  server handler {} pool-max-conn 512\n",
            if tls { ssl } else { String::new() },
            self.handler
        );
        write(folder, "haproxy.cfg", text)
    }

    fn sample(&self, address: SocketAddr, tls: bool) -> Vec<OsString> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/mode2.mjs");
        let words =
            [script.to_owned(), address.port().to_string(), format!("http://{}/", self.handler), KEY.to_owned()];
        let (cert, key) = self.certificate.files();
        let files = [cert, key].into_iter().filter(|_| tls).map(|file| file.as_os_str().to_owned());
        words.map(OsString::from).into_iter().chain(files).collect()
    }
}

impl Running {
    fn id(&self) -> u32 {
        match &self.process {
            Process::Relay(relay) => relay.id(),
            Process::Other(child) => child.id(),
        }
    }

    /// The processor time that it and its workers have taken so far.
    pub(crate) fn processor(&self) -> Duration {
        family(self.id()).into_iter().map(processor).sum()
    }

    /// The resident bytes of it and its workers.
    pub(crate) fn memory(&self) -> u64 {
        family(self.id()).into_iter().map(|id| memory(id).now).sum()
    }

    pub(crate) async fn stop(mut self) {
        if let Process::Other(child) = &mut self.process {
            kill_process(Pid::from_child(child), Signal::TERM).expect("it runs");
            child.wait().expect("it ends");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Process::Other(child) = &mut self.process {
            // Both fail only for a child that has ended, which is the goal.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A process and its children.
fn family(id: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    std::iter::once(id).chain(children.split_whitespace().filter_map(|child| child.parse().ok())).collect()
}

fn write(folder: &Path, name: &str, text: String) -> PathBuf {
    let file = folder.join(name);
    fs::write(&file, text).expect("the folder can be written");
    file
}

/// A port without a listener just now.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port is free")
}
