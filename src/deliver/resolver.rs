//! Resolves names with the system's resolver, with few concurrent calls for each target.
//!
//! That resolver blocks a thread until it is done, which may take half a minute, and cannot be cancelled. So a call
//! holds its permit until it has really ended, even if its request is gone, and a target whose name hangs cannot use up
//! the threads that the other targets and the readers of the store need. Answers are not cached: the system does that,
//! and connections are reused. With `deny_private`, addresses are checked here, where they are dialled: nothing can
//! change between the check and the connection.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec;

use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::Semaphore;
use tower::Service;

use super::address;

/// Concurrent calls of one target.
const MAX_CALLS: usize = 4;

type Addresses = vec::IntoIter<SocketAddr>;

/// The resolver of one target.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    permits: Arc<Semaphore>,
    resolve: fn(&str) -> io::Result<Addresses>,
    deny_private: bool,
}

impl Resolver {
    pub(super) fn new(deny_private: bool) -> Self {
        Self { deny_private, ..Self::with(|name| (name, 0).to_socket_addrs()) }
    }

    fn with(resolve: fn(&str) -> io::Result<Addresses>) -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_CALLS)), resolve, deny_private: false }
    }
}

/// Keeps the public addresses. An error if all are denied.
fn public(found: Addresses) -> io::Result<Addresses> {
    let mut denied = None;
    let judged = found.filter(|found| address::check_public(found.ip()).map_err(|why| denied = Some(why)).is_ok());
    let public: Vec<_> = judged.collect();
    match denied {
        Some(why) if public.is_empty() => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
        _ => Ok(public.into_iter()),
    }
}

impl Service<Name> for Resolver {
    type Response = Addresses;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Addresses>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let Self { permits, resolve, deny_private } = self.clone();
        Box::pin(async move {
            let permit = permits.acquire_owned().await.map_err(io::Error::other)?;
            let call = tokio::task::spawn_blocking(move || {
                let found = resolve(name.as_str());
                drop(permit);
                found
            });
            let found = call.await.map_err(io::Error::other)??;
            if deny_private { public(found) } else { Ok(found) }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Handle;
    use tokio::time::timeout;

    use super::*;

    static LET_GO: Semaphore = Semaphore::const_new(0);

    fn hanging(_: &str) -> io::Result<Addresses> {
        Handle::current().block_on(LET_GO.acquire()).unwrap().forget();
        Ok(Vec::new().into_iter())
    }

    fn changing(name: &str) -> io::Result<Addresses> {
        let addresses: &[&str] = match name {
            "public.test" => &["1.1.1.1:0", "[2606:4700:4700::1111]:0"],
            "both.test" => &["127.0.0.1:0", "1.1.1.1:0", "[fd00::1]:0"],
            "private.test" => &["[::ffff:10.0.0.1]:0", "127.0.0.1:0"],
            _ => &[],
        };
        Ok(addresses.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>().into_iter())
    }

    #[tokio::test]
    async fn only_public_addresses_come_out_where_private_ones_are_denied() {
        let asked = async |name: &str, deny_private| {
            let mut resolver = Resolver { deny_private, ..Resolver::with(changing) };
            let found = resolver.call(name.parse().unwrap()).await;
            found.map(Iterator::count).map_err(|error| error.to_string())
        };
        for (name, all, allowed) in [("public.test", 2, 2), ("both.test", 3, 1), ("nothing.test", 0, 0)] {
            assert_eq!((asked(name, false).await, asked(name, true).await), (Ok(all), Ok(allowed)), "{name}");
        }
        assert_eq!(asked("private.test", false).await, Ok(2));
        let denied = "denied: 127.0.0.1 is loopback, and the target has deny_private".to_owned();
        assert_eq!(asked("private.test", true).await, Err(denied));
    }

    #[tokio::test]
    async fn a_name_that_hangs_takes_few_threads_even_after_its_requests_are_gone() {
        let mut resolver = Resolver::with(hanging);
        let name: Name = "hangs.test".parse().unwrap();
        for _ in 0..=MAX_CALLS {
            assert!(timeout(Duration::ZERO, resolver.call(name.clone())).await.is_err());
        }
        assert_eq!(resolver.permits.available_permits(), 0);
        LET_GO.add_permits(MAX_CALLS + 1);
        assert_eq!(resolver.call(name).await.unwrap().count(), 0, "a permit is free again");
    }
}
