//! Places for connections: so many at a time, and when all are taken, who waits makes room for who comes.
//!
//! Invariants: an accept loop does not wait while some connection has no request under way; a request under way is never
//! given up for another connection. Among those that wait, connections that were never answered with success go first;
//! of these, those of addresses that were not either; of these, those of the address that has the most, the oldest first:
//! whoever floods closes its own connections, and there is no limit that a reverse proxy or WeChat's few addresses could
//! meet. What is kept is bounded by the places, and by `ADDRESSES`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Peer;
use crate::telemetry::LogThrottle;

/// How many are closed at once, as a share of all places: to look for them costs as much as to look for one.
const SHARE: usize = 64;
/// How soon room is made again, when there was nobody to close.
const AGAIN: Duration = Duration::from_millis(10);
/// How many addresses are remembered to have been answered with success: WeChat has some hundreds.
const ADDRESSES: usize = 4096;

/// The places of a server.
pub(super) struct Places {
    all: usize,
    room: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    refusals: LogThrottle,
}

/// The connections without a request under way, by when they began to wait.
#[derive(Default)]
struct Waiting {
    next: u64,
    connections: HashMap<u64, Waiter>,
    /// The addresses of which a connection was answered with success: WeChat makes a new one for each push, and while a
    /// flood takes the processor, more of them wait for their handshake than an address of the flood has.
    known: HashSet<Peer>,
}

struct Waiter {
    source: Peer,
    known: bool,
    leave: Arc<Notify>,
}

/// A connection's place, given back when it is dropped.
pub(super) struct Place {
    places: Arc<Places>,
    leave: Arc<Notify>,
    state: Mutex<State>,
    _permit: Option<OwnedSemaphorePermit>,
}

struct State {
    source: Peer,
    /// Where it stands among the waiting ones; `None` while a request is under way.
    waits: Option<u64>,
    /// Requests under way; several over HTTP/2.
    busy: usize,
    /// Whether a request of it was answered with success.
    known: bool,
}

impl Places {
    pub(super) fn new(all: usize) -> Arc<Self> {
        let room = Arc::new(Semaphore::new(all));
        Arc::new(Self { all, room, waiting: Mutex::default(), refusals: LogThrottle::default() })
    }

    /// A place for a connection that has come. If there is none, some that wait are closed.
    pub(super) async fn take(self: &Arc<Self>, peer: Peer) -> Place {
        let permit = match self.room.clone().try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => loop {
                self.make_room();
                if let Ok(permit) = timeout(AGAIN, self.room.clone().acquire_owned()).await {
                    // The semaphore is never closed, so this is a permit.
                    break permit.ok();
                }
            },
        };
        let state = State { source: peer.subscriber(), waits: None, busy: 0, known: false };
        let place = Place { places: self.clone(), leave: Arc::default(), state: Mutex::new(state), _permit: permit };
        place.is_of(peer);
        place
    }

    fn make_room(&self) {
        let mut waiting = lock(&self.waiting);
        let Some((source, leaving)) = waiting.dispensable((self.all / SHARE).max(1)) else { return };
        let closed = leaving.len();
        for number in leaving {
            if let Some(waiter) = waiting.connections.remove(&number) {
                waiter.leave.notify_one();
            }
        }
        drop(waiting);
        if let Some(held_back) = self.refusals.due() {
            let source = source.0.map(tracing::field::display);
            tracing::warn!(
                places = self.all,
                closed,
                source,
                held_back,
                "all connections are taken, waiting ones are closed: a flood, or clients that never close"
            );
        }
    }
}

impl Waiting {
    fn begin(&mut self, waiter: Waiter) -> u64 {
        self.next += 1;
        self.connections.insert(self.next, waiter);
        self.next
    }

    /// Whom to close, at most so many: all of one source.
    fn dispensable(&self, most: usize) -> Option<(Peer, Vec<u64>)> {
        let (source, mut numbers) = self
            .largest_crowd(|waiter| !waiter.known && !self.known.contains(&waiter.source))
            .or_else(|| self.largest_crowd(|waiter| !waiter.known))
            .or_else(|| {
                let (number, oldest) = self.connections.iter().min_by_key(|(number, _)| **number)?;
                Some((oldest.source, vec![*number]))
            })?;
        numbers.sort_unstable();
        numbers.truncate(most);
        Some((source, numbers))
    }

    /// Of the connections of which this is true: those of the source that has the most.
    fn largest_crowd(&self, of: impl Fn(&Waiter) -> bool) -> Option<(Peer, Vec<u64>)> {
        let mut crowds: HashMap<Peer, Vec<u64>> = HashMap::new();
        for (number, waiter) in self.connections.iter().filter(|(_, waiter)| of(waiter)) {
            crowds.entry(waiter.source).or_default().push(*number);
        }
        // Of equals the one with the oldest, so that it does not depend on chance.
        crowds.into_iter().max_by_key(|(_, numbers)| (numbers.len(), numbers.iter().min().map(|at| !at)))
    }

    /// A connection of this source was answered with success.
    fn greet(&mut self, source: Peer) {
        if self.known.len() == ADDRESSES && !self.known.contains(&source) {
            self.known.clear();
        }
        self.known.insert(source);
    }
}

impl Place {
    /// Says whom the connection is from, where a PROXY header tells better than the socket.
    pub(super) fn is_of(&self, peer: Peer) {
        let mut state = lock(&self.state);
        state.source = peer.subscriber();
        self.wait(&mut state);
    }

    /// A request has begun: while it is under way the connection is not closed for another.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        let mut state = lock(&self.state);
        state.busy += 1;
        self.leave_waiting(&mut state);
        UnderWay { place: self.clone(), success: false }
    }

    fn end(&self, success: bool) {
        let mut state = lock(&self.state);
        state.busy -= 1;
        if success && !state.known {
            state.known = true;
            lock(&self.places.waiting).greet(state.source);
        }
        if state.busy == 0 {
            self.wait(&mut state);
        }
    }

    /// Returns when the connection has to make room.
    pub(super) async fn leave(&self) {
        loop {
            self.leave.notified().await;
            // A request may have come in the very moment.
            if lock(&self.state).busy == 0 {
                return;
            }
        }
    }

    fn wait(&self, state: &mut State) {
        self.leave_waiting(state);
        let waiter = Waiter { source: state.source, known: state.known, leave: self.leave.clone() };
        state.waits = Some(lock(&self.places.waiting).begin(waiter));
    }

    fn leave_waiting(&self, state: &mut State) {
        if let Some(number) = state.waits.take() {
            lock(&self.places.waiting).connections.remove(&number);
        }
    }
}

/// A request under way; over when this is dropped, however it ended.
pub(super) struct UnderWay {
    place: Arc<Place>,
    success: bool,
}

impl UnderWay {
    /// It was answered, with success or without.
    pub(super) fn answered(mut self, success: bool) {
        self.success = success;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.place.end(self.success);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if let Some(number) = state.waits.take() {
            lock(&self.places.waiting).connections.remove(&number);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer(Some(address.parse().unwrap()))
    }

    async fn taken(places: &Arc<Places>, address: &str) -> Arc<Place> {
        Arc::new(places.take(peer(address)).await)
    }

    /// Which of these have been told to leave.
    async fn leaving(connections: &[&Arc<Place>]) -> Vec<usize> {
        let mut leaving = Vec::new();
        for (number, place) in connections.iter().enumerate() {
            if timeout(Duration::ZERO, place.leave()).await.is_ok() {
                leaving.push(number);
            }
        }
        leaving
    }

    /// Tries to take a place when there is none, and gives up.
    async fn crowd(places: &Arc<Places>) {
        assert!(
            timeout(Duration::from_millis(1), places.take(peer("192.0.2.200"))).await.is_err(),
            "nobody has left yet"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_with_the_most_waiting_connections_closes_its_oldest() {
        let places = Places::new(4);
        let few = taken(&places, "192.0.2.1").await;
        let [one, two, three] =
            [taken(&places, "192.0.2.9").await, taken(&places, "192.0.2.9").await, taken(&places, "192.0.2.9").await];
        crowd(&places).await;
        assert_eq!(leaving(&[&few, &one, &two, &three]).await, [1]);
        drop(one);
        assert!(timeout(Duration::from_millis(1), places.take(peer("192.0.2.200"))).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_customer_is_one_address() {
        let places = Places::new(4);
        let all = [
            &taken(&places, "2001:db8:0:1::1").await,
            &taken(&places, "2001:db8:0:2::1").await,
            &taken(&places, "2001:db8:0:1:ffff::7").await,
            &taken(&places, "2001:db8:0:3::1").await,
        ];
        crowd(&places).await;
        assert_eq!(leaving(&all).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_answered_with_success_goes_last_and_who_is_at_work_not_at_all() {
        let places = Places::new(3);
        let [known, failed, busy] =
            [taken(&places, "192.0.2.9").await, taken(&places, "192.0.2.9").await, taken(&places, "192.0.2.9").await];
        known.begin().answered(true);
        failed.begin().answered(false);
        let request = busy.begin();
        crowd(&places).await;
        assert_eq!(leaving(&[&known, &failed, &busy]).await, [1]);
        crowd(&places).await;
        assert_eq!(leaving(&[&known, &failed, &busy]).await, [0], "the only one left that waits");
        crowd(&places).await;
        assert_eq!(leaving(&[&known, &failed, &busy]).await, [0; 0]);
        drop(request);
        crowd(&places).await;
        assert_eq!(leaving(&[&known, &failed, &busy]).await, [2], "a request that was broken off is over too");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_was_answered_with_success_goes_after_strangers_though_it_has_more_connections() {
        let places = Places::new(4);
        let known = taken(&places, "192.0.2.9").await;
        known.begin().answered(true);
        drop(known);
        let [one, two, three] =
            [taken(&places, "192.0.2.9").await, taken(&places, "192.0.2.9").await, taken(&places, "192.0.2.9").await];
        let stranger = taken(&places, "192.0.2.1").await;
        crowd(&places).await;
        assert_eq!(leaving(&[&one, &two, &three, &stranger]).await, [3]);
        crowd(&places).await;
        assert_eq!(leaving(&[&one, &two, &three, &stranger]).await, [0], "where there is no stranger");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_of_addresses_is_bounded() {
        let places = Places::new(1);
        for number in 0..=ADDRESSES as u32 {
            let address = std::net::Ipv4Addr::from_bits(number).to_string();
            taken(&places, &address).await.begin().answered(true);
        }
        assert_eq!(lock(&places.waiting).known.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_in_the_moment_of_leaving_is_answered() {
        let places = Places::new(1);
        let place = taken(&places, "192.0.2.9").await;
        crowd(&places).await;
        let request = place.begin();
        assert_eq!(leaving(&[&place]).await, [0; 0]);
        request.answered(true);
        crowd(&places).await;
        assert_eq!(leaving(&[&place]).await, [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_given_back_and_nothing_is_kept_of_it() {
        let places = Places::new(2);
        for _ in 0..10 {
            let (one, two) = (taken(&places, "192.0.2.1").await, taken(&places, "192.0.2.2").await);
            let under_way = two.begin();
            drop((one, two, under_way));
        }
        assert_eq!(places.room.available_permits(), 2);
        assert!(lock(&places.waiting).connections.is_empty());
    }
}
