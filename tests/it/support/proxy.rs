//! nginx and HAProxy as installed, run with the files of `deploy/`: only addresses and paths are replaced.
//!
//! A text to replace must be in the file, so that a changed file fails the test. One process each, which ends with its
//! handle.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::command::{Running, free_address, run};
use super::eventually;
use super::program::{self, skip};

/// The address of the relay in the example files.
const RELAY: &str = "127.0.0.1:8080";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Software {
    Nginx,
    Haproxy,
}

impl Software {
    /// Whether it is not installed; if so, the test is skipped.
    pub(crate) fn is_missing(self) -> bool {
        program::is_missing(self.name())
    }

    /// Whether it cannot forward bare TCP, like nginx without its stream module; if so, the test is skipped.
    pub(crate) fn is_missing_for_tcp(self) -> bool {
        let missing = self == Self::Nginx && load_stream().is_none();
        if missing {
            skip("nginx is installed without its stream module");
        }
        missing
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    fn program(self) -> PathBuf {
        program::find(self.name()).unwrap_or_else(|| panic!("{} is asked for before", self.name()))
    }
}

/// A running proxy, in front of one upstream.
pub(crate) struct Proxy {
    software: Software,
    running: Running,
    folder: TempDir,
    /// Its address for HTTP or bare TCP.
    pub(crate) http: String,
    /// Its address for HTTPS; the same one for bare TCP.
    pub(crate) https: String,
}

impl Proxy {
    /// The example that terminates HTTP and TLS. `cert` and `key` are PEM files.
    pub(crate) async fn http(software: Software, upstream: &str, cert: &str, key: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (http, https) = (free_address(), free_address());
        let at = |name: &str| folder.path().join(name).to_str().expect("a path of text").to_owned();
        let config = match software {
            Software::Nginx => {
                let replaced = [
                    (RELAY, upstream),
                    ("listen 80;", &format!("listen {http};")),
                    ("listen [::]:80;", ""),
                    ("listen 443 ssl;", &format!("listen {https} ssl;")),
                    ("listen [::]:443 ssl;", ""),
                    ("/etc/letsencrypt/live/relay.example.com/fullchain.pem", cert),
                    ("/etc/letsencrypt/live/relay.example.com/privkey.pem", key),
                    ("/var/log/nginx/wxrelay.log", &at("access.log")),
                    ("/var/log/nginx/wxrelay-error.log", &at("error.log")),
                ];
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("{name}_temp_path {};\n", at(name)))
                    .concat();
                nginx(&format!("http {{\n{temporary}{}}}\n", example("nginx/wxrelay.conf", &replaced)))
            }
            Software::Haproxy => {
                let both = fs::read_to_string(cert).expect("a certificate") + &fs::read_to_string(key).expect("a key");
                fs::write(at("both.pem"), both).expect("the folder can be written");
                let replaced = [
                    (RELAY, upstream),
                    ("bind :80\n", &format!("bind {http}\n")),
                    ("bind :443 ssl", &format!("bind {https} ssl")),
                    ("/etc/haproxy/certs/relay.example.com.pem", &at("both.pem")),
                ];
                haproxy(&example("haproxy/haproxy.cfg", &replaced))
            }
        };
        Self::start(software, folder, &config, http, https).await
    }

    /// The example for TCP, with a PROXY header.
    pub(crate) async fn tcp(software: Software, upstream: &str) -> Self {
        let (folder, address) = (tempfile::tempdir().expect("a temporary folder"), free_address());
        let config = match software {
            Software::Nginx => {
                let replaced = [
                    ("127.0.0.1:8443", upstream),
                    ("listen 443;", &format!("listen {address};")),
                    ("listen [::]:443;", ""),
                ];
                let load = load_stream().expect("asked for before");
                load + &nginx(&example("nginx/wxrelay-stream.conf", &replaced))
            }
            Software::Haproxy => {
                let replaced = [("127.0.0.1:8443", upstream), ("bind :443\n", &format!("bind {address}\n"))];
                haproxy(&example("haproxy/haproxy-tcp.cfg", &replaced))
            }
        };
        Self::start(software, folder, &config, address.clone(), address).await
    }

    async fn start(software: Software, folder: TempDir, config: &str, http: String, https: String) -> Self {
        let file = folder.path().join("proxy.conf");
        fs::write(&file, config).expect("the folder can be written");
        let checked = run(command(software, folder.path(), &file, &["-t"], &["-c"])).await;
        assert_eq!(checked.code, Some(0), "{software:?} takes the example: {checked:?}");
        let running = Running::spawn(command(software, folder.path(), &file, &[], &["-db"]));
        for address in [&http, &https] {
            eventually("the proxy listens", async || TcpStream::connect(address).await.ok()).await;
        }
        Self { software, running, folder, http, https }
    }

    /// Its access log so far.
    pub(crate) fn access_log(&self) -> String {
        match self.software {
            Software::Nginx => fs::read_to_string(self.folder.path().join("access.log")).expect("nginx writes it"),
            Software::Haproxy => self.running.lines().join("\n"),
        }
    }
}

/// An example file, with the replacements of a test.
fn example(path: &str, replaced: &[(&str, &str)]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path);
    let mut text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    for (from, to) in replaced {
        assert!(text.contains(from), "{path} has no `{from}`");
        text = text.replace(from, to);
    }
    text
}

/// One process in the foreground.
fn nginx(inner: &str) -> String {
    format!("daemon off;\nmaster_process off;\npid nginx.pid;\nevents {{}}\n{inner}")
}

/// The line that loads nginx's stream module: empty if it is compiled in. `None` if there is no such module.
fn load_stream() -> Option<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("proxy.conf");
    let built = Command::new(Software::Nginx.program()).arg("-V").output().expect("nginx runs");
    let built = String::from_utf8_lossy(&built.stderr).into_owned();
    let modules = built.split("--modules-path=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let module = Path::new(modules.unwrap_or("/usr/lib/nginx/modules")).join("ngx_stream_module.so");
    // The second is that of /etc/nginx/modules-enabled, where the module is a separate package.
    let loads = [String::new(), format!("load_module {};\n", module.display())];
    loads.into_iter().find(|load| {
        fs::write(&file, load.clone() + &nginx("stream {}\n")).expect("the folder can be written");
        command(Software::Nginx, folder.path(), &file, &["-t"], &[]).output().is_ok_and(|tried| tried.status.success())
    })
}

/// One process, which logs to its output.
fn haproxy(sections: &str) -> String {
    format!("global\n    log stdout format raw local0\n\n{sections}")
}

fn command(software: Software, folder: &Path, file: &Path, nginx: &[&str], haproxy: &[&str]) -> Command {
    let mut command = Command::new(software.program());
    match software {
        Software::Nginx => command.arg("-p").arg(folder).args(["-e", "stderr", "-c"]).arg(file).args(nginx),
        Software::Haproxy => command.args(haproxy).arg("-f").arg(file),
    };
    command.stdin(Stdio::null());
    command
}

/// Between a proxy and the relay: counts the connections that the proxy opens.
pub(crate) struct Counter {
    pub(crate) address: SocketAddr,
    opened: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Counter {
    pub(crate) async fn before(relay: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (relay, opened) = (relay.to_owned(), Arc::new(AtomicUsize::new(0)));
        let count = opened.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let relay = relay.clone();
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(relay).await.expect("the relay listens");
                    tokio::io::copy_bidirectional(&mut from, &mut to).await.ok();
                });
            }
        });
        Self { address, opened, task }
    }

    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.task.abort();
    }
}
