//! Names to addresses by the system's resolver, few at a time for each target.
//!
//! That resolver blocks a thread until it is done, which may take half a minute, and can't be called off. So a call
//! keeps its place until it has really ended, whether anybody still waits or not, and a target whose name hangs can't
//! use up the threads that the other targets and the readers of the store need. Answers are not kept: the system does
//! that, and connections are reused.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec;

use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::Semaphore;
use tower::Service;

/// How many calls of one target may be under way.
const CALLS: usize = 4;

type Addresses = vec::IntoIter<SocketAddr>;

/// One target's way to ask.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    places: Arc<Semaphore>,
    ask: fn(&str) -> io::Result<Addresses>,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self::asking(|name| (name, 0).to_socket_addrs())
    }

    fn asking(ask: fn(&str) -> io::Result<Addresses>) -> Self {
        Self { places: Arc::new(Semaphore::new(CALLS)), ask }
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
        let Self { places, ask } = self.clone();
        Box::pin(async move {
            let place = places.acquire_owned().await.map_err(io::Error::other)?;
            let call = tokio::task::spawn_blocking(move || {
                let found = ask(name.as_str());
                drop(place);
                found
            });
            call.await.map_err(io::Error::other)?
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

    #[tokio::test]
    async fn a_name_that_hangs_takes_few_threads_even_when_nobody_waits_any_more() {
        let mut resolver = Resolver::asking(hanging);
        let name: Name = "hangs.test".parse().unwrap();
        for _ in 0..=CALLS {
            assert!(timeout(Duration::ZERO, resolver.call(name.clone())).await.is_err());
        }
        assert_eq!(resolver.places.available_permits(), 0);
        LET_GO.add_permits(CALLS + 1);
        assert_eq!(resolver.call(name).await.unwrap().count(), 0, "a place is free again");
    }
}
