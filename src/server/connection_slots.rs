//! Connection slots: a limit on open connections, and which of them are evicted when all slots are taken.
//!
//! Invariants: an accept loop never waits while some connection is idle; a connection with an active request is never
//! evicted. Idle connections are evicted in this order: unauthenticated clients (never answered 2xx) of addresses that
//! were never answered 2xx either; then other unauthenticated clients; then the oldest. Among the first two, those of
//! the address with the most idle connections go first, its oldest first: a flood evicts its own connections. There is
//! no limit per address, which a reverse proxy or WeChat's few addresses could reach. Memory is bounded by the number
//! of slots and by [`MAX_KNOWN_ADDRESSES`]. The limit may change: a lower one closes connections only when others arrive.
//!
//! Why not a plain semaphore: a flood that opens connections and sends nothing would lock WeChat out until its timeouts
//! pass. Why addresses are remembered: without that, half-open handshakes from 200 addresses left 12 of 102 pushes
//! unanswered, as WeChat's address had more connections in their handshake than any address of the flood.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::Peer;
use crate::telemetry::LogThrottle;

/// One eviction closes up to 1/32 of all connections: finding many costs as much as finding one. It begins when no more
/// slots than that are left, so that the next connections need not wait until those evicted have ended: without that, a
/// flood of connections that are made again at once delayed WeChat's by seconds on a busy machine.
const EVICTION_SHARE: usize = 32;
/// The wait before the next eviction, when no slot was released.
pub(super) const EVICTION_RETRY: Duration = Duration::from_millis(10);
/// The most authenticated addresses that are remembered: WeChat has a few hundred.
const MAX_KNOWN_ADDRESSES: usize = 4096;

/// The most open connections of a server, which may change while it serves.
#[derive(Clone, Debug)]
pub struct ConnectionLimit(Arc<AtomicUsize>);

impl ConnectionLimit {
    pub fn new(most: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(most)))
    }

    pub fn set(&self, most: usize) {
        self.0.store(most, Ordering::Relaxed);
    }

    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The connection slots of a server.
pub(super) struct ConnectionSlots {
    limit: ConnectionLimit,
    open: AtomicUsize,
    /// How many of the open connections are being evicted.
    evicting: AtomicUsize,
    /// Notified by every connection that ends.
    released: Notify,
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
    eviction: Arc<Eviction>,
}

/// Tells a connection that it is evicted.
#[derive(Default)]
struct Eviction {
    notify: Notify,
    /// Whether the connection counts in `evicting`.
    counted: AtomicBool,
}

/// One connection's slot, released on drop.
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    /// Notified by [`ConnectionSlots::evict_idle`]; [`ConnectionSlot::evicted`] waits for it.
    eviction: Arc<Eviction>,
    /// Locked before `slots.idle`, never the other way round.
    state: Mutex<SlotState>,
    accepted: Instant,
    /// When the last request began, in milliseconds after `accepted`, plus 1; 0 between requests.
    last_request: AtomicU64,
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
    pub(super) fn new(limit: ConnectionLimit) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open: AtomicUsize::new(0),
            evicting: AtomicUsize::new(0),
            released: Notify::new(),
            idle: Mutex::default(),
            evictions: LogThrottle::default(),
        })
    }

    /// Waits for a slot for a new connection. While there is none, idle connections are evicted.
    pub(super) async fn acquire(self: &Arc<Self>, peer: Peer) -> ConnectionSlot {
        loop {
            // Before the attempt, so that no release between the two is missed.
            let released = self.released.notified();
            if self.try_open() {
                break;
            }
            self.evict_for_limit();
            timeout(EVICTION_RETRY, released).await.ok();
        }
        if self.is_nearly_full() {
            self.evict_for_limit();
        }
        let state = SlotState { source: peer.subscriber(), idle: None, active: 0, authenticated: false };
        let slot = ConnectionSlot {
            slots: self.clone(),
            eviction: Arc::default(),
            state: Mutex::new(state),
            accepted: Instant::now(),
            last_request: AtomicU64::new(0),
        };
        slot.set_peer(peer);
        slot
    }

    /// Counts a connection, if the limit allows one more.
    fn try_open(&self) -> bool {
        let one_more = |open| (open < self.limit.get()).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Whether few slots are left, with those that are being evicted.
    fn is_nearly_full(&self) -> bool {
        let limit = self.limit.get();
        let remaining = self.open.load(Ordering::Relaxed).saturating_sub(self.evicting.load(Ordering::Relaxed));
        remaining > limit - limit / EVICTION_SHARE
    }

    fn evict_for_limit(&self) {
        if let Some((source, evicted)) = self.evict_idle() {
            self.log_eviction(source, evicted);
        }
    }

    /// Evicts idle connections after an `accept` that failed for lack of file descriptors: something else than
    /// connections uses more of them than expected. Returns how many.
    pub(super) fn make_room(&self) -> usize {
        self.evict_idle().map_or(0, |(_, evicted)| evicted)
    }

    /// Evicts some idle connections, all of one source, if there are any.
    fn evict_idle(&self) -> Option<(Peer, usize)> {
        let mut idle = self.idle.lock();
        let (source, candidates) = idle.eviction_candidates((self.limit.get() / EVICTION_SHARE).max(1))?;
        let evicted = candidates.len();
        for number in candidates {
            if let Some(IdleConnection { eviction, .. }) = idle.connections.remove(&number) {
                if !eviction.counted.swap(true, Ordering::Relaxed) {
                    self.evicting.fetch_add(1, Ordering::Relaxed);
                }
                eviction.notify.notify_one();
            }
        }
        Some((source, evicted))
    }

    fn log_eviction(&self, source: Peer, evicted: usize) {
        if let Some(suppressed) = self.evictions.allow() {
            let source = source.0.map(tracing::field::display);
            tracing::warn!(
                places = self.limit.get(),
                closed = evicted,
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
        let after = u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        let mut state = self.state.lock();
        self.last_request.store(after + 1, Ordering::Relaxed);
        state.active += 1;
        self.unmark_idle(&mut state);
        self.leave_eviction();
        ActiveRequest { slot: self.clone(), success: false }
    }

    /// How long ago the last request began that is being answered; `None` if none is.
    pub(super) fn since_request(&self) -> Option<Duration> {
        let after = self.last_request.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.accepted.elapsed().saturating_sub(Duration::from_millis(after)))
    }

    fn end_request(&self, success: bool) {
        let mut state = self.state.lock();
        state.active -= 1;
        if state.active == 0 {
            self.last_request.store(0, Ordering::Relaxed);
        }
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
            self.eviction.notify.notified().await;
            // A request may have begun between `evict_idle` and here: then the connection stays. Pairs with the lock
            // in `begin_request`.
            if self.state.lock().active == 0 {
                return;
            }
        }
    }

    /// Counts no longer as being evicted: it has ended, or has a request after all.
    fn leave_eviction(&self) {
        if self.eviction.counted.swap(false, Ordering::Relaxed) {
            self.slots.evicting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn mark_idle(&self, state: &mut SlotState) {
        self.unmark_idle(state);
        let (source, authenticated) = (state.source, state.authenticated);
        let connection = IdleConnection { source, authenticated, eviction: self.eviction.clone() };
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
        self.leave_eviction();
        self.slots.open.fetch_sub(1, Ordering::Relaxed);
        self.slots.released.notify_waiters();
    }
}

#[cfg(test)]
#[path = "connection_slots_tests.rs"]
mod tests;
