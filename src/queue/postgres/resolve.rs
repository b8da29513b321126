//! The addresses of a server's name, by the system's resolver.
//!
//! That resolver blocks a thread until it is done, which may take half a minute, and cannot be stopped: so few calls run
//! at a time, and each counts until it has really ended. While names cannot be resolved, the last addresses are used:
//! a server can be reached without its name.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::problem::{RESOLVER, ServerProblem};

/// How long a name is waited for, the wait for an earlier call included.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Concurrent calls.
const MAX_CALLS: usize = 2;

type HostAndPort = (String, u16);
type Resolve = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// Resolves the names of the servers; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    permits: Arc<Semaphore>,
    last: Arc<Mutex<HashMap<HostAndPort, Vec<SocketAddr>>>>,
    resolve: Resolve,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::with(|name, port| (name, port).to_socket_addrs().map(Iterator::collect))
    }
}

impl Resolver {
    fn with(resolve: Resolve) -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_CALLS)), last: Arc::default(), resolve }
    }

    /// The addresses of a name.
    pub(super) async fn resolve(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, ServerProblem> {
        if let Ok(address) = name.parse() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let key = (name.to_owned(), port);
        let problem = match timeout(RESOLVE_TIMEOUT, self.ask(key.clone())).await {
            Ok(Ok(found)) if !found.is_empty() => {
                self.last.lock().insert(key, found.clone());
                return Ok(found);
            }
            Ok(Ok(_)) => ServerProblem::Resolve(io::Error::new(io::ErrorKind::NotFound, "it has no address")),
            Ok(Err(error)) => ServerProblem::Resolve(error),
            Err(_) => ServerProblem::Timeout { stage: RESOLVER, seconds: RESOLVE_TIMEOUT.as_secs() },
        };
        self.last.lock().get(&key).cloned().ok_or(problem)
    }

    async fn ask(&self, (name, port): HostAndPort) -> io::Result<Vec<SocketAddr>> {
        let permit = self.permits.clone().acquire_owned().await.map_err(io::Error::other)?;
        let resolve = self.resolve;
        let call = tokio::task::spawn_blocking(move || {
            let found = resolve(&name, port);
            drop(permit);
            found
        });
        call.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::runtime::Handle;

    use super::*;

    static HANGING: AtomicUsize = AtomicUsize::new(0);
    static LET_GO: Semaphore = Semaphore::const_new(0);

    fn first_known_then_hanging(_: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if HANGING.fetch_add(1, Ordering::Relaxed) > 0 {
            Handle::current().block_on(LET_GO.acquire()).unwrap().forget();
        }
        Ok(vec![SocketAddr::new([10, 0, 0, 1].into(), port)])
    }

    #[tokio::test]
    async fn while_names_hang_the_last_addresses_are_used_and_few_threads_wait() {
        let resolver = Resolver::with(first_known_then_hanging);
        let known = resolver.resolve("pg1.test", 5432).await.unwrap();
        assert_eq!(known, ["10.0.0.1:5432".parse().unwrap()]);
        for _ in 0..2 {
            assert_eq!(resolver.resolve("pg1.test", 5432).await.unwrap(), known);
        }
        assert_eq!(resolver.permits.available_permits(), 0);
        let unknown = resolver.resolve("pg2.test", 5432).await.unwrap_err();
        assert_eq!(unknown.to_string(), "the resolver did not answer within 1 s");
        assert_eq!(HANGING.load(Ordering::Relaxed), 3, "the last one did not begin");
        assert_eq!(resolver.resolve("10.0.0.9", 1).await.unwrap(), ["10.0.0.9:1".parse().unwrap()]);
        LET_GO.add_permits(3);
        assert_eq!(resolver.resolve("pg2.test", 7).await.unwrap(), ["10.0.0.1:7".parse().unwrap()]);
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_said_so() {
        let resolver = Resolver::with(|_, _| Ok(Vec::new()));
        let problem = resolver.resolve("pg1.test", 5432).await.unwrap_err();
        assert!(
            matches!(&problem, ServerProblem::Resolve(_)) && problem.to_string().contains("no address"),
            "{problem}"
        );
    }
}
