//! Connection slots: a limit on open connections, and which of them are evicted when all slots are taken.
//!
//! Invariants: an accept loop never waits while some connection is idle; a connection with an active request is never
//! evicted. Idle connections are evicted in this order: unauthenticated clients (never answered 2xx) of addresses that
//! were never answered 2xx either; then other unauthenticated clients; then the oldest. Among the first two, those of
//! the address with the most idle connections go first, its oldest first: a flood evicts its own connections. There is
//! no limit per address, which a reverse proxy or WeChat's few addresses could reach. Memory is bounded by the number
//! of slots and by [`MAX_KNOWN_ADDRESSES`].
//!
//! Why not a plain semaphore: a flood that opens connections and sends nothing would lock WeChat out until its timeouts
//! pass. Why addresses are remembered: without that, half-open handshakes from 200 addresses left 12 of 102 pushes
//! unanswered, as WeChat's address had more connections in their handshake than any address of the flood.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Peer;
use crate::telemetry::LogThrottle;

/// One eviction closes up to 1/64 of all connections: finding many costs as much as finding one.
const EVICTION_SHARE: usize = 64;
/// The wait before the next eviction, when no slot was released.
const EVICTION_RETRY: Duration = Duration::from_millis(10);
/// The most authenticated addresses that are remembered: WeChat has a few hundred.
const MAX_KNOWN_ADDRESSES: usize = 4096;

/// The connection slots of a server.
pub(super) struct ConnectionSlots {
    limit: usize,
    permits: Arc<Semaphore>,
    idle: Mutex<IdleConnections>,
    evictions: LogThrottle,
}

/// The connections without an active request, numbered in the order in which they became idle.
#[derive(Default)]
struct IdleConnections {
    next: u64,
    connections: HashMap<u64, IdleConnection>,
    /// Addresses of which any connection was answered 2xx: WeChat opens a connection for each push.
    authenticated: HashSet<Peer>,
}

struct IdleConnection {
    source: Peer,
    authenticated: bool,
    evict: Arc<Notify>,
}

/// One connection's slot, released on drop.
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    /// Notified by [`ConnectionSlots::evict_idle`]; [`ConnectionSlot::evicted`] waits for it.
    evict: Arc<Notify>,
    /// Locked before `slots.idle`, never the other way round.
    state: Mutex<SlotState>,
    _permit: Option<OwnedSemaphorePermit>,
}

struct SlotState {
    source: Peer,
    /// The key in [`IdleConnections`]; `None` while a request is active.
    idle: Option<u64>,
    /// Active requests; several over HTTP/2.
    active: usize,
    /// Whether one of its requests was answered 2xx.
    authenticated: bool,
}

impl ConnectionSlots {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(limit));
        Arc::new(Self { limit, permits, idle: Mutex::default(), evictions: LogThrottle::default() })
    }

    /// Waits for a slot for a new connection. While there is none, idle connections are evicted.
    pub(super) async fn acquire(self: &Arc<Self>, peer: Peer) -> ConnectionSlot {
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => loop {
                self.evict_idle();
                if let Ok(permit) = timeout(EVICTION_RETRY, self.permits.clone().acquire_owned()).await {
                    // The semaphore is never closed, so this is a permit.
                    break permit.ok();
                }
            },
        };
        let state = SlotState { source: peer.subscriber(), idle: None, active: 0, authenticated: false };
        let slot =
            ConnectionSlot { slots: self.clone(), evict: Arc::default(), state: Mutex::new(state), _permit: permit };
        slot.set_peer(peer);
        slot
    }

    fn evict_idle(&self) {
        let mut idle = self.idle.lock();
        let Some((source, candidates)) = idle.eviction_candidates((self.limit / EVICTION_SHARE).max(1)) else { return };
        let closed = candidates.len();
        for number in candidates {
            if let Some(connection) = idle.connections.remove(&number) {
                connection.evict.notify_one();
            }
        }
        drop(idle);
        if let Some(suppressed) = self.evictions.allow() {
            let source = source.0.map(tracing::field::display);
            tracing::warn!(
                places = self.limit,
                closed,
                source,
                held_back = suppressed,
                "connection limit reached, idle connections evicted"
            );
        }
    }
}

impl IdleConnections {
    fn insert(&mut self, connection: IdleConnection) -> u64 {
        self.next += 1;
        self.connections.insert(self.next, connection);
        self.next
    }

    /// Up to `most` connections to evict, all of one source.
    fn eviction_candidates(&self, most: usize) -> Option<(Peer, Vec<u64>)> {
        let (source, mut numbers) = self
            .largest_source(|idle| !idle.authenticated && !self.authenticated.contains(&idle.source))
            .or_else(|| self.largest_source(|idle| !idle.authenticated))
            .or_else(|| {
                let (number, oldest) = self.connections.iter().min_by_key(|(number, _)| **number)?;
                Some((oldest.source, vec![*number]))
            })?;
        numbers.sort_unstable();
        numbers.truncate(most);
        Some((source, numbers))
    }

    /// The connections of the source that has the most matching ones.
    fn largest_source(&self, matches: impl Fn(&IdleConnection) -> bool) -> Option<(Peer, Vec<u64>)> {
        let mut sources: HashMap<Peer, Vec<u64>> = HashMap::new();
        for (number, idle) in self.connections.iter().filter(|(_, idle)| matches(idle)) {
            sources.entry(idle.source).or_default().push(*number);
        }
        // A tie goes to the source of the oldest, so that the choice does not depend on the map's order.
        sources.into_iter().max_by_key(|(_, numbers)| (numbers.len(), numbers.iter().min().map(|at| !at)))
    }

    fn mark_authenticated(&mut self, source: Peer) {
        if self.authenticated.len() == MAX_KNOWN_ADDRESSES && !self.authenticated.contains(&source) {
            self.authenticated.clear();
        }
        self.authenticated.insert(source);
    }
}

impl ConnectionSlot {
    /// Sets the peer that the connection counts for: a PROXY header may name another one than the socket does.
    pub(super) fn set_peer(&self, peer: Peer) {
        let mut state = self.state.lock();
        state.source = peer.subscriber();
        self.mark_idle(&mut state);
    }

    /// Begins a request: while it is active the connection is not evicted.
    pub(super) fn begin_request(self: &Arc<Self>) -> ActiveRequest {
        let mut state = self.state.lock();
        state.active += 1;
        self.unmark_idle(&mut state);
        ActiveRequest { slot: self.clone(), success: false }
    }

    fn end_request(&self, success: bool) {
        let mut state = self.state.lock();
        state.active -= 1;
        if success && !state.authenticated {
            state.authenticated = true;
            self.slots.idle.lock().mark_authenticated(state.source);
        }
        if state.active == 0 {
            self.mark_idle(&mut state);
        }
    }

    /// Returns when the connection is evicted.
    pub(super) async fn evicted(&self) {
        loop {
            self.evict.notified().await;
            // A request may have begun between `evict_idle` and here: then the connection stays. Pairs with the lock
            // in `begin_request`.
            if self.state.lock().active == 0 {
                return;
            }
        }
    }

    fn mark_idle(&self, state: &mut SlotState) {
        self.unmark_idle(state);
        let (source, authenticated) = (state.source, state.authenticated);
        let connection = IdleConnection { source, authenticated, evict: self.evict.clone() };
        state.idle = Some(self.slots.idle.lock().insert(connection));
    }

    fn unmark_idle(&self, state: &mut SlotState) {
        if let Some(number) = state.idle.take() {
            self.slots.idle.lock().connections.remove(&number);
        }
    }
}

/// An active request, which ends when this is dropped.
pub(super) struct ActiveRequest {
    slot: Arc<ConnectionSlot>,
    success: bool,
}

impl ActiveRequest {
    /// Ends the request as answered; `success` is a 2xx.
    pub(super) fn answered(mut self, success: bool) {
        self.success = success;
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.slot.end_request(self.success);
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if let Some(number) = state.idle.take() {
            self.slots.idle.lock().connections.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer(Some(address.parse().unwrap()))
    }

    async fn acquired(slots: &Arc<ConnectionSlots>, address: &str) -> Arc<ConnectionSlot> {
        Arc::new(slots.acquire(peer(address)).await)
    }

    /// Which of these connections were evicted.
    async fn evicted(connections: &[&Arc<ConnectionSlot>]) -> Vec<usize> {
        let mut found = Vec::new();
        for (number, slot) in connections.iter().enumerate() {
            if timeout(Duration::ZERO, slot.evicted()).await.is_ok() {
                found.push(number);
            }
        }
        found
    }

    /// Asks for a slot while all are taken, and gives up after 1 ms.
    async fn exhaust(slots: &Arc<ConnectionSlots>) {
        assert!(
            timeout(Duration::from_millis(1), slots.acquire(peer("192.0.2.200"))).await.is_err(),
            "nobody has left yet"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_with_the_most_idle_connections_loses_its_oldest() {
        let slots = ConnectionSlots::new(4);
        let few = acquired(&slots, "192.0.2.1").await;
        let [one, two, three] = [
            acquired(&slots, "192.0.2.9").await,
            acquired(&slots, "192.0.2.9").await,
            acquired(&slots, "192.0.2.9").await,
        ];
        exhaust(&slots).await;
        assert_eq!(evicted(&[&few, &one, &two, &three]).await, [1]);
        drop(one);
        assert!(timeout(Duration::from_millis(1), slots.acquire(peer("192.0.2.200"))).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_customer_is_one_address() {
        let slots = ConnectionSlots::new(4);
        let all = [
            &acquired(&slots, "2001:db8:0:1::1").await,
            &acquired(&slots, "2001:db8:0:2::1").await,
            &acquired(&slots, "2001:db8:0:1:ffff::7").await,
            &acquired(&slots, "2001:db8:0:3::1").await,
        ];
        exhaust(&slots).await;
        assert_eq!(evicted(&all).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn authenticated_clients_are_evicted_last_and_active_ones_never() {
        let slots = ConnectionSlots::new(3);
        let [known, failed, busy] = [
            acquired(&slots, "192.0.2.9").await,
            acquired(&slots, "192.0.2.9").await,
            acquired(&slots, "192.0.2.9").await,
        ];
        known.begin_request().answered(true);
        failed.begin_request().answered(false);
        let request = busy.begin_request();
        exhaust(&slots).await;
        assert_eq!(evicted(&[&known, &failed, &busy]).await, [1]);
        exhaust(&slots).await;
        assert_eq!(evicted(&[&known, &failed, &busy]).await, [0], "the only one left that waits");
        exhaust(&slots).await;
        assert_eq!(evicted(&[&known, &failed, &busy]).await, [0; 0]);
        drop(request);
        exhaust(&slots).await;
        assert_eq!(evicted(&[&known, &failed, &busy]).await, [2], "a request that was broken off is over too");
    }

    #[tokio::test(start_paused = true)]
    async fn an_authenticated_address_is_evicted_after_unauthenticated_clients_though_it_has_more_connections() {
        let slots = ConnectionSlots::new(4);
        let known = acquired(&slots, "192.0.2.9").await;
        known.begin_request().answered(true);
        drop(known);
        let [one, two, three] = [
            acquired(&slots, "192.0.2.9").await,
            acquired(&slots, "192.0.2.9").await,
            acquired(&slots, "192.0.2.9").await,
        ];
        let unauthenticated = acquired(&slots, "192.0.2.1").await;
        exhaust(&slots).await;
        assert_eq!(evicted(&[&one, &two, &three, &unauthenticated]).await, [3]);
        exhaust(&slots).await;
        assert_eq!(
            evicted(&[&one, &two, &three, &unauthenticated]).await,
            [0],
            "when no unauthenticated client is left"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_set_of_authenticated_addresses_is_bounded() {
        let slots = ConnectionSlots::new(1);
        for number in 0..=MAX_KNOWN_ADDRESSES as u32 {
            let address = std::net::Ipv4Addr::from_bits(number).to_string();
            acquired(&slots, &address).await.begin_request().answered(true);
        }
        assert_eq!(slots.idle.lock().authenticated.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_arrives_during_eviction_is_answered() {
        let slots = ConnectionSlots::new(1);
        let slot = acquired(&slots, "192.0.2.9").await;
        exhaust(&slots).await;
        let request = slot.begin_request();
        assert_eq!(evicted(&[&slot]).await, [0; 0]);
        request.answered(true);
        exhaust(&slots).await;
        assert_eq!(evicted(&[&slot]).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_released_and_nothing_is_kept_of_it() {
        let slots = ConnectionSlots::new(2);
        for _ in 0..10 {
            let (one, two) = (acquired(&slots, "192.0.2.1").await, acquired(&slots, "192.0.2.2").await);
            let under_way = two.begin_request();
            drop((one, two, under_way));
        }
        assert_eq!(slots.permits.available_permits(), 2);
        assert!(slots.idle.lock().connections.is_empty());
    }
}
