//! Logins and verification files: the callback as a browser sees it, the files as WeChat's console does, and whether the
//! clients can be reached.
//!
//! The code that is sent is none, and no redirect is followed: no client ever gets it.

use std::net::SocketAddr;

use tokio::time::timeout;

use super::chain::TrustStore;
use super::public::{check_tls, reach, resolve};
use super::report::{CheckResult, DoctorCheck};
use super::{LIMIT, join_ordered};
use crate::cli::simulate::{ClientStream, Http10Error, RawResponse, ServerUrl, exchange_over, get};
use crate::config::Config;
use crate::login::{Login, VerifyFile};

/// The query of the callback.
const QUERY: &str = "code=wxrelayDoctor&state=x";

const CHECK_SERVER: &str = "is it this relay, with this configuration, that answers there?";

/// Asks for the callback of a login.
pub(super) async fn check_callback(
    check: &DoctorCheck,
    stream: ClientStream,
    url: &ServerUrl,
    login: &Login,
) -> CheckResult {
    let response = match ask(stream, url, QUERY).await {
        Ok(response) => response,
        Err(error) => return check.failed_with(error),
    };
    let location = response.header("location");
    match (response.status, location) {
        (303, Some(location)) if location == login.location(QUERY) => {
            check.ok(format!("303 to {}, with code and state", without_query(&login.to)))
        }
        (300..400, Some(location)) => check.failed(
            format!(
                "answered {} to {}, expected 303 to logins.{}.to",
                response.status,
                without_query(location),
                login.name
            ),
            CHECK_SERVER,
        ),
        (404, _) => {
            let remedy =
                format!("compare it with logins.{}.path and with what the proxy in front makes of it", login.name);
            check.failed("answered 404: nothing is at this path", remedy)
        }
        (400, _) => check.failed("answered 400: the query did not arrive", "let the proxy in front pass the query on"),
        (status, _) => check.failed(format!("answered {status}, expected 303"), CHECK_SERVER),
    }
}

/// Compares a verification file with what is served at its place.
pub(super) async fn check_file(
    check: &DoctorCheck,
    stream: ClientStream,
    url: &ServerUrl,
    file: &VerifyFile,
) -> CheckResult {
    match ask(stream, url, "").await {
        Err(error) => check.failed_with(error),
        Ok(response) if response.status != 200 => {
            let remedy = "lead this path to the relay too; after a change of server.verify_files, reload it";
            check.failed(format!("answered {}, expected 200", response.status), remedy)
        }
        Ok(response) if response.body != *file.content => {
            check.failed("answered with other bytes than the file has", "reload the relay, or remove the other copy")
        }
        Ok(_) => check.ok(format!("served, {} bytes", file.content.len())),
    }
}

async fn ask(stream: ClientStream, url: &ServerUrl, query: &str) -> Result<RawResponse, Http10Error> {
    timeout(LIMIT, exchange_over(stream, &get(url, query))).await.map_err(|_| Http10Error::Timeout)?
}

/// One result per login: whether a browser on this machine reaches its client. Nothing is asked for.
pub(super) async fn check_clients(config: &Config, trust: &TrustStore) -> Vec<CheckResult> {
    join_ordered(config.logins.logins.iter().map(|login| check_client(login.clone(), trust.clone()))).await
}

async fn check_client(login: Login, trust: TrustStore) -> CheckResult {
    let check = DoctorCheck::new("login", &login.name);
    let remedy = format!("is logins.{}.to right, and does its site run?", login.name);
    let url: ServerUrl = match login.to.parse() {
        Ok(url) => url,
        Err(error) => return check.failed(error, remedy),
    };
    let addresses = match resolve(&url).await {
        Ok(addresses) => addresses,
        Err(failure) => return check.failed_with(failure),
    };
    let mut lost = Vec::new();
    for address in addresses {
        match reach(address).await {
            Ok(stream) if url.is_https() => {
                let checked = check_tls(&check, stream, url.host(), trust).await;
                return checked
                    .map_or_else(|failed| failed, |(_, line)| line.unwrap_or_else(|| reached(&check, address)));
            }
            Ok(_) => return reached(&check, address),
            Err(why) => lost.push(format!("{address}: {why}")),
        }
    }
    check.failed(format!("no connection ({})", lost.join("; ")), remedy)
}

fn reached(check: &DoctorCheck, address: SocketAddr) -> CheckResult {
    check.ok(format!("{address} is open"))
}

fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}
