//! Pebble, Let's Encrypt's ACME server for tests, as installed: a real authority on loopback.
//!
//! It keeps no state when it exits, and makes a new root at every start. One process, which ends with its handle.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::command::{Running, free_address};
use super::eventually;
use crate::tls::{Certificate, over_tls};

/// Its address and the certificate of its API, which are known before it runs.
pub(crate) struct PebbleSetup {
    pub(crate) address: String,
    files: Certificate,
}

impl PebbleSetup {
    pub(crate) fn new() -> Self {
        let address = free_address();
        let host = address.split(':').next().expect("an address has a host").to_owned();
        Self { address, files: Certificate::of(&[&host, "localhost"], 4096) }
    }

    /// The keys of an `acme` table for orders from it.
    pub(crate) fn keys(&self) -> String {
        format!("directory = \"https://{}/dir\", ca = \"{}\"", self.address, self.files.cert())
    }

    /// The file of the CA of its API.
    pub(crate) fn ca(&self) -> String {
        self.files.cert()
    }

    /// The folder of its certificates, relative to the store.
    pub(crate) fn folder(&self) -> PathBuf {
        PathBuf::from(format!("acme/{}-dir", self.address.replace(':', "-")))
    }

    /// Starts it. It validates domains at the port of the address `looked_for`, and issues certificates that are valid
    /// for `validity` seconds.
    pub(crate) async fn start(&self, looked_for: &str, validity: u32) -> Pebble {
        let (folder, management) = (tempfile::tempdir().expect("a temporary folder"), free_address());
        let port: u16 = looked_for.rsplit(':').next().expect("an address").parse().expect("a port");
        let config = json!({ "pebble": {
            "listenAddress": self.address,
            "managementListenAddress": management,
            "certificate": self.files.cert(),
            "privateKey": self.files.key(),
            "httpPort": 1,
            "tlsPort": port,
            "certificateValidityPeriod": validity,
        }});
        let file = folder.path().join("pebble.json");
        fs::write(&file, config.to_string()).expect("the folder can be written");
        let mut command = Command::new("pebble");
        command.arg("-config").arg(&file).stdin(Stdio::null());
        command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0").env("PEBBLE_AUTHZREUSE", "0");
        let running = Running::spawn(command);
        for address in [&self.address, &management] {
            eventually("pebble listens", async || TcpStream::connect(address).await.ok()).await;
        }
        let answer = over_tls(&management, &self.files, b"GET /roots/0 HTTP/1.0\r\n\r\n").await;
        let pem = answer[answer.find("-----BEGIN").expect("it has its root")..].to_owned();
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is one");
        Pebble { _running: running, _folder: folder, root, pem }
    }
}

/// A running authority.
pub(crate) struct Pebble {
    _running: Running,
    _folder: TempDir,
    /// The root of its certificates.
    pub(crate) root: CertificateDer<'static>,
    /// The same as text.
    pub(crate) pem: String,
}
