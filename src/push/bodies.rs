//! Bodies that are still to come: how many may wait, and which of them are evicted for others.
//!
//! A valid `signature` shows that the sender has seen a URL that WeChat signed, in a proxy's log for example; it covers
//! no body, so it can be sent again with any. Invariants: of each signature one body waits, the newest, as WeChat's
//! next try of a push is worth more than one whose body has not come; of all accounts at most
//! [`BodyLimits::signed`] bodies wait, with at most [`BodyLimits::bytes`] bytes received; above that, the account with
//! the most loses its oldest. WeChat's bodies come with their heads, so the oldest are those that do not come, and an
//! account whose URLs were captured loses its own. The clients without a valid signature share a few slots, and when
//! these are taken are refused.
//!
//! A body that has arrived with its head is never counted. The simple version counted every body, which costs each push
//! a lock and two entries.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::PushError;
use crate::telemetry::LogThrottle;

/// How often the read of a body is polled until the body counts as waiting. Each poll follows a read of the connection.
const POLLS: u32 = 4;
/// The most signed bodies that wait, where enough connections are allowed.
const MAX_SIGNED: usize = 512;
/// The most bodies of clients that have not shown that they know the token.
const MAX_UNAUTHENTICATED: usize = 64;
/// The most bytes received of signed bodies that wait, unless that is less than two whole bodies.
const MAX_BYTES: usize = 32 << 20;

/// What may wait.
#[derive(Clone, Copy, Debug)]
struct BodyLimits {
    /// Bodies of clients with a valid signature.
    signed: usize,
    /// Bodies of all other clients.
    unauthenticated: usize,
    /// Bytes received of those with a signature.
    bytes: usize,
}

/// The bodies of all pushes that wait.
pub(super) struct BodyTable {
    waiting: Mutex<WaitingBodies>,
    /// Numbers the bodies in the order in which their reads began.
    next: AtomicU64,
    unauthenticated: AtomicUsize,
    max_body: usize,
    evictions: LogThrottle,
}

struct WaitingBodies {
    limits: BodyLimits,
    count: usize,
    bytes: usize,
    accounts: HashMap<Arc<str>, AccountBodies>,
}

/// The bodies of an account that wait, in the order in which they came.
#[derive(Default)]
struct AccountBodies {
    bodies: BTreeMap<u64, WaitingBody>,
    bytes: usize,
}

struct WaitingBody {
    signature: SignatureKey,
    bytes: usize,
    /// Dropped when the body is evicted.
    _kept: oneshot::Sender<()>,
}

/// The first 64 bits of a valid signature, which is a SHA-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SignatureKey(u64);

impl SignatureKey {
    /// The key of a signature in hex.
    pub(super) fn of(signature: &str) -> Option<Self> {
        signature.get(..16).and_then(|hex| u64::from_str_radix(hex, 16).ok()).map(Self)
    }
}

impl BodyTable {
    /// For bodies of up to `max_body` bytes, and up to `connections` connections.
    pub(super) fn new(max_body: usize, connections: usize) -> Self {
        let waiting = Mutex::new(WaitingBodies::new(BodyLimits::new(max_body, connections)));
        let (next, unauthenticated, evictions) = (AtomicU64::new(0), AtomicUsize::new(0), LogThrottle::default());
        Self { waiting, next, unauthenticated, max_body, evictions }
    }

    /// Sets the number of connections, of which waiting bodies take less than half: a connection with one is not idle,
    /// so it cannot be evicted.
    pub(super) fn set_connections(&self, connections: usize) {
        self.waiting.lock().limits = BodyLimits::new(self.max_body, connections);
    }

    /// Reads the body of a client without a valid signature.
    pub(super) async fn read_unauthenticated<B>(&self, body: B) -> Result<Bytes, PushError>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let limit = self.waiting.lock().limits.unauthenticated;
        let one_more = |count| (count < limit).then_some(count + 1);
        if self.unauthenticated.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return Err(PushError::Busy);
        }
        let _slot = UnauthenticatedSlot(&self.unauthenticated);
        collect(body, self.max_body).await
    }

    /// Reads the body of a client with this valid signature.
    pub(super) async fn read_signed<B>(
        &self,
        body: B,
        account: &Arc<str>,
        signature: SignatureKey,
    ) -> Result<Bytes, PushError>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (number, received) = (self.next.fetch_add(1, Ordering::Relaxed), AtomicUsize::new(0));
        let counted = body.inspect_frame(|frame| {
            received.fetch_add(frame.data_ref().map_or(0, Bytes::len), Ordering::Relaxed);
        });
        let mut reading = pin!(collect(counted, self.max_body));
        let (mut polls, mut slot) = (0, None::<BodySlot<'_>>);
        poll_fn(|context| {
            if let Poll::Ready(read) = reading.as_mut().poll(context) {
                return Poll::Ready(read);
            }
            polls += 1;
            if polls < POLLS {
                // What has arrived is read first. hyper wakes the task for that too, which makes one wake-up of both.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let slot = slot.get_or_insert_with(|| self.wait(account, number, signature));
            slot.grow(received.load(Ordering::Relaxed));
            Pin::new(&mut slot.evicted).poll(context).map(|_| Err(PushError::Busy))
        })
        .await
    }

    fn wait(&self, account: &Arc<str>, number: u64, signature: SignatureKey) -> BodySlot<'_> {
        let (kept, evicted) = oneshot::channel();
        let body = WaitingBody { signature, bytes: 0, _kept: kept };
        let crowded = self.waiting.lock().insert(account, number, body);
        self.log_eviction(crowded);
        BodySlot { table: self, account: account.clone(), number, bytes: 0, evicted }
    }

    /// Logs the account that lost a body for lack of slots or memory.
    fn log_eviction(&self, account: Option<Arc<str>>) {
        let Some(account) = account else { return };
        if let Some(suppressed) = self.evictions.allow() {
            tracing::warn!(%account, held_back = suppressed, "too many bodies that do not arrive, the oldest refused");
        }
    }
}

impl BodyLimits {
    fn new(max_body: usize, connections: usize) -> Self {
        Self {
            signed: (connections / 4).clamp(1, MAX_SIGNED),
            unauthenticated: (connections / 8).clamp(1, MAX_UNAUTHENTICATED),
            bytes: MAX_BYTES.max(max_body.saturating_mul(2)),
        }
    }
}

impl WaitingBodies {
    fn new(limits: BodyLimits) -> Self {
        Self { limits, count: 0, bytes: 0, accounts: HashMap::new() }
    }

    /// Adds a body. The older of two with the same signature is evicted, which may be this one, and above the limit
    /// another one. Returns the account that had more than the limit allows.
    fn insert(&mut self, account: &Arc<str>, number: u64, body: WaitingBody) -> Option<Arc<str>> {
        let same = self.accounts.get(account).and_then(|own| {
            own.bodies.iter().find(|(_, waiting)| waiting.signature == body.signature).map(|(same, _)| *same)
        });
        if let Some(same) = same {
            if same > number {
                return None;
            }
            self.remove(account, same);
        }
        self.count += 1;
        self.accounts.entry(account.clone()).or_default().bodies.insert(number, body);
        if self.count > self.limits.signed { self.evict(|own| own.bodies.len()) } else { None }
    }

    /// Notes that `more` bytes of a body were received. Returns the account that had more than the limit allows.
    fn grow(&mut self, account: &Arc<str>, number: u64, more: usize) -> Option<Arc<str>> {
        let own = self.accounts.get_mut(account)?;
        own.bodies.get_mut(&number)?.bytes += more;
        own.bytes += more;
        self.bytes += more;
        let mut crowded = None;
        while self.bytes > self.limits.bytes {
            crowded = Some(self.evict(|own| own.bytes)?);
        }
        crowded
    }

    /// Evicts the oldest body of the account with the most.
    fn evict(&mut self, size: impl Fn(&AccountBodies) -> usize) -> Option<Arc<str>> {
        let (account, own) = self.accounts.iter().max_by_key(|(_, own)| size(own))?;
        let (account, oldest) = (account.clone(), *own.bodies.keys().next()?);
        self.remove(&account, oldest);
        Some(account)
    }

    fn remove(&mut self, account: &Arc<str>, number: u64) {
        let Some(own) = self.accounts.get_mut(account) else { return };
        let Some(removed) = own.bodies.remove(&number) else { return };
        own.bytes -= removed.bytes;
        self.bytes -= removed.bytes;
        self.count -= 1;
        if own.bodies.is_empty() {
            self.accounts.remove(account);
        }
    }
}

/// The slot of a signed body that waits, released when dropped.
struct BodySlot<'t> {
    table: &'t BodyTable,
    account: Arc<str>,
    number: u64,
    bytes: usize,
    /// Ready when the body is evicted.
    evicted: oneshot::Receiver<()>,
}

impl BodySlot<'_> {
    fn grow(&mut self, bytes: usize) {
        let more = bytes - std::mem::replace(&mut self.bytes, bytes);
        if more > 0 {
            let crowded = self.table.waiting.lock().grow(&self.account, self.number, more);
            self.table.log_eviction(crowded);
        }
    }
}

impl Drop for BodySlot<'_> {
    fn drop(&mut self) {
        self.table.waiting.lock().remove(&self.account, self.number);
    }
}

struct UnauthenticatedSlot<'t>(&'t AtomicUsize);

impl Drop for UnauthenticatedSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn collect<B>(body: B, max: usize) -> Result<Bytes, PushError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // A body whose announced length is too large need not arrive.
    if body.size_hint().lower() > max as u64 {
        return Err(PushError::TooLarge);
    }
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(max);
    let mut body = pin!(Limited::new(body, max));
    let mut bytes = Vec::new();
    // Copied as they come: each part would keep its own buffer of the connection alive, many times its size. Collected
    // first, a body of 0.9 MB took 58 MB.
    while let Some(frame) = body.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(part)) => append(&mut bytes, &part, announced),
            Ok(Err(_trailers)) => {}
            Err(error) if error.is::<http_body_util::LengthLimitError>() => return Err(PushError::TooLarge),
            Err(_) => return Err(PushError::BrokenBody),
        }
    }
    Ok(bytes.into())
}

/// Appends a part of a body. What is allocated is at most twice what has come, as announcing a length costs nothing, and
/// in the end what was announced.
fn append(bytes: &mut Vec<u8>, part: &[u8], announced: usize) {
    let needed = bytes.len() + part.len();
    if needed > bytes.capacity() {
        let capacity = (2 * needed).min(announced).max(needed);
        bytes.reserve_exact(capacity - bytes.len());
    }
    bytes.extend_from_slice(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BodyLimits = BodyLimits { signed: 3, unauthenticated: 1, bytes: 100 };

    struct Bodies {
        table: WaitingBodies,
        /// By number, to see which are evicted.
        evicted: Vec<(u64, oneshot::Receiver<()>)>,
    }

    impl Bodies {
        fn new() -> Self {
            Self { table: WaitingBodies::new(LIMITS), evicted: Vec::new() }
        }

        fn insert(&mut self, account: &str, signature: u64) -> Option<Arc<str>> {
            self.insert_as(self.evicted.len() as u64 + 1, account, signature)
        }

        fn insert_as(&mut self, number: u64, account: &str, signature: u64) -> Option<Arc<str>> {
            let (kept, evicted) = oneshot::channel();
            let body = WaitingBody { signature: SignatureKey(signature), bytes: 0, _kept: kept };
            let crowded = self.table.insert(&account.into(), number, body);
            self.evicted.push((number, evicted));
            crowded
        }

        /// The numbers of the bodies that wait.
        fn waiting(&mut self) -> Vec<u64> {
            let is_kept = |(number, evicted): &mut (u64, oneshot::Receiver<()>)| {
                matches!(evicted.try_recv(), Err(oneshot::error::TryRecvError::Empty)).then_some(*number)
            };
            let waiting: Vec<_> = self.evicted.iter_mut().filter_map(is_kept).collect();
            assert_eq!(waiting.len(), self.table.count);
            waiting
        }
    }

    #[test]
    fn the_newest_body_of_a_signature_waits() {
        let mut bodies = Bodies::new();
        for (account, signature) in [("shop", 7), ("shop", 8), ("shop", 7), ("other", 7)] {
            assert_eq!(bodies.insert(account, signature), None);
        }
        assert_eq!(bodies.waiting(), [2, 3, 4]);
        assert_eq!(bodies.insert_as(0, "shop", 8), None);
        assert_eq!(bodies.waiting(), [2, 3, 4], "the newest by arrival, however late the other one is counted");
    }

    #[test]
    fn the_account_with_the_most_bodies_loses_its_oldest() {
        let mut bodies = Bodies::new();
        assert_eq!(bodies.insert("other", 1), None);
        for signature in 2..10 {
            let crowded = bodies.insert("shop", signature);
            assert_eq!(crowded.as_deref(), (signature > 3).then_some("shop"));
        }
        assert_eq!(bodies.waiting(), [1, 8, 9]);
    }

    #[test]
    fn the_account_with_the_most_bytes_loses_its_oldest() {
        let mut bodies = Bodies::new();
        bodies.insert("other", 1);
        bodies.insert("shop", 2);
        bodies.insert("shop", 3);
        assert_eq!(bodies.table.grow(&"other".into(), 1, 40), None);
        assert_eq!(bodies.table.grow(&"shop".into(), 2, 10), None);
        assert_eq!(bodies.table.grow(&"shop".into(), 3, 60).as_deref(), Some("shop"));
        assert_eq!(bodies.waiting(), [1, 3]);
        assert_eq!(bodies.table.bytes, 100);
        bodies.table.remove(&"shop".into(), 3);
        bodies.table.remove(&"other".into(), 1);
        assert_eq!((bodies.table.bytes, bodies.table.accounts.len()), (0, 0), "nothing is kept of them");
    }

    #[tokio::test]
    async fn a_body_that_has_arrived_is_not_counted() {
        let table = BodyTable::new(1 << 20, 0);
        let signature = SignatureKey::of(&"0123456789abcdef".repeat(2)).unwrap();
        let body = http_body_util::Full::new(Bytes::from_static(b"<xml/>"));
        let read = table.read_signed(body, &"shop".into(), signature).await.unwrap();
        assert_eq!((&read[..], table.waiting.lock().count), (&b"<xml/>"[..], 0));
    }
}
