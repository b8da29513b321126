//! Admission to the admin listener: a request's body is read first, then it waits for a slot, then it has a deadline.
//!
//! Invariants: a client that sends or reads nothing holds no slot, so it keeps nobody else from one; the requests that
//! hold a connection slot are bounded, so that idle connections can always be evicted for new ones; whatever hangs, a
//! request ends. The simple version had slots alone: eight requests whose bodies did not come locked everybody out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Error;

/// The time for a whole body, however many bytes come in between. The commands send theirs with the head.
const BODY_DEADLINE: Duration = Duration::from_secs(5);
const MAX_BODY: usize = 2 << 20;
/// The most bodies that are received at a time; for a further one, the oldest is given up. So a client that sends its
/// body at once is served, however many others do not.
const MAX_BODIES: usize = 16;
/// How long a request waits for a slot: less than the commands wait for an answer.
const SLOT_WAIT: Duration = Duration::from_secs(4);

/// The slots of a group of routes; cheap to clone.
#[derive(Clone)]
pub(super) struct Admission {
    slots: Arc<Semaphore>,
    /// The requests that have or wait for a slot.
    places: Arc<Semaphore>,
    bodies: Arc<IncomingBodies>,
    deadline: Duration,
}

impl Admission {
    /// `waiting`: how many requests may wait for one of the slots.
    pub(super) fn new(slots: usize, waiting: usize, deadline: Duration) -> Self {
        let places = Arc::new(Semaphore::new(slots + waiting));
        Self { slots: Arc::new(Semaphore::new(slots)), places, bodies: Arc::default(), deadline }
    }

    /// The same slots, with another deadline.
    pub(super) fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The request with its whole body.
    async fn receive(&self, request: Request) -> Result<Request, Error> {
        if request.body().is_end_stream() {
            return Ok(request);
        }
        let (head, body) = request.into_parts();
        let incoming = self.bodies.begin();
        tokio::select! {
            biased;
            read = timeout(BODY_DEADLINE, to_bytes(body, MAX_BODY)) => match read {
                Ok(Ok(bytes)) => Ok(Request::from_parts(head, Body::from(bytes))),
                Ok(Err(_)) => Err(Error::LargeBody(MAX_BODY)),
                Err(_) => Err(Error::LateBody),
            },
            () = incoming.given_up() => Err(Error::LateBody),
        }
    }

    async fn slot(&self) -> Result<[OwnedSemaphorePermit; 2], Error> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        let slot = timeout(SLOT_WAIT, self.slots.clone().acquire_owned()).await;
        // The semaphore is never closed.
        Ok([place, slot.map_err(|_| Error::Busy)?.map_err(|_| Error::Busy)?])
    }
}

/// Passes a request on once its body is here and a slot is free.
pub(super) async fn admit(State(admission): State<Admission>, request: Request, next: Next) -> Result<Response, Error> {
    let request = admission.receive(request).await?;
    serve(admission, request, next).await
}

/// The same for routes that take no body: whatever comes is left unread.
pub(super) async fn admit_unread(
    State(admission): State<Admission>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    serve(admission, request, next).await
}

async fn serve(admission: Admission, request: Request, next: Next) -> Result<Response, Error> {
    let _permits = admission.slot().await?;
    timeout(admission.deadline, next.run(request)).await.map_err(|_| Error::Late(admission.deadline))
}

/// The bodies that are being received, oldest first.
#[derive(Default)]
struct IncomingBodies(Mutex<VecDeque<Arc<Notify>>>);

impl IncomingBodies {
    fn begin(self: &Arc<Self>) -> IncomingBody {
        let give_up = Arc::new(Notify::new());
        let mut bodies = self.0.lock();
        if bodies.len() == MAX_BODIES
            && let Some(oldest) = bodies.pop_front()
        {
            oldest.notify_one();
        }
        bodies.push_back(give_up.clone());
        IncomingBody { bodies: self.clone(), give_up }
    }
}

/// A body that is being received, until this is dropped.
struct IncomingBody {
    bodies: Arc<IncomingBodies>,
    give_up: Arc<Notify>,
}

impl IncomingBody {
    /// Returns when newer bodies need its place.
    async fn given_up(&self) {
        self.give_up.notified().await;
    }
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        self.bodies.0.lock().retain(|other| !Arc::ptr_eq(other, &self.give_up));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_body_is_given_up_for_a_further_one() {
        let bodies = Arc::<IncomingBodies>::default();
        let mut open: Vec<_> = (0..MAX_BODIES).map(|_| bodies.begin()).collect();
        drop(open.remove(1));
        open.push(bodies.begin());
        let is_given_up = async |body: &IncomingBody| timeout(Duration::ZERO, body.given_up()).await.is_ok();
        assert!(!is_given_up(&open[0]).await, "there was a free place");
        let newest = bodies.begin();
        assert!(is_given_up(&open[0]).await && !is_given_up(&open[1]).await && !is_given_up(&newest).await);
        drop((open, newest));
        assert!(bodies.0.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_a_slot_for_some_seconds_and_few_do() {
        let admission = Admission::new(1, 1, Duration::from_secs(30));
        let held = admission.slot().await.unwrap();
        let begun = tokio::time::Instant::now();
        let (waited, refused) = tokio::join!(admission.slot(), admission.slot());
        assert!(matches!((waited, refused), (Err(Error::Busy), Err(Error::Busy))));
        assert_eq!(begun.elapsed(), SLOT_WAIT, "one waited, the other was refused at once");
        drop(held);
        assert!(admission.slot().await.is_ok());
    }
}
