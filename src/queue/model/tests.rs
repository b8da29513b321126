//! A replica that was frozen for longer than a takeover takes, with attempts of its own that are not settled.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{BrokenRule, ModelStore, StoreLink};
use crate::queue::fixture::{NOW, ids, new_event, settlement};
use crate::queue::{DeliveryState, Disposition, EventId, Lease, Queue};
use crate::tuning::{ReplicaTiming, Tuning};

const FROZEN: Duration = Duration::from_secs(20);
/// By then a replica that has thawed proves again that it lives.
const PROVED: Duration = Duration::from_secs(4);
/// By then what is held without a lease is free.
const FREED: Duration = Duration::from_secs(10);

async fn replica(store: &Arc<ModelStore>) -> (Queue, Arc<StoreLink>) {
    let (link, tuning) = (StoreLink::new(|_| 0, 0), Tuning { replica: ReplicaTiming::default(), ..Tuning::small() });
    let queue = Queue::model(store, Arc::clone(&link), &tuning).await.unwrap();
    queue.bound_attempts(&"crm".into(), Duration::from_secs(1));
    (queue, link)
}

/// Two replicas; the first one has been frozen with a lease, which is not settled, and which the other one has freed.
async fn thawed(store: &Arc<ModelStore>) -> (Queue, Queue, EventId, Lease) {
    let ((thawed, link), (other, _)) = (replica(store).await, replica(store).await);
    let mut inbox = thawed.subscribe("crm".into(), 8);
    let new = new_event(thawed.next_id(NOW), "a", &["crm"]);
    let id = new.event.id;
    thawed.enqueue(new).await.unwrap();
    let lease = inbox.fresh.recv().await.unwrap();
    link.freeze(Instant::now() + FROZEN);
    sleep(FROZEN).await;
    assert_eq!(store.rows().due("crm", NOW), [id], "taken over");
    (thawed, other, id, lease)
}

#[tokio::test(start_paused = true)]
async fn what_a_thawed_replica_has_not_settled_is_not_leased_to_it_again() {
    let store = ModelStore::new(BrokenRule::None);
    let (thawed, _other, id, lease) = thawed(&store).await;
    sleep(PROVED).await;
    assert!(thawed.lease("crm", 10, NOW).await.unwrap().due.is_empty(), "attempted twice at once");
    thawed.settle(settlement(id, "crm", Disposition::Retry(NOW), 1)).await.unwrap();
    drop(lease);
    let leases = thawed.lease("crm", 10, NOW).await.unwrap();
    assert_eq!((ids(&leases), leases.due[0].attempt), (vec![id], 2));
    sleep(FREED).await;
    assert!(thawed.lease("crm", 10, NOW).await.unwrap().due.is_empty(), "it is still out");
    thawed.settle(settlement(id, "crm", Disposition::End(DeliveryState::Delivered), 2)).await.unwrap();
    assert!(store.rows().deliveries.values().all(|row| row.state == DeliveryState::Delivered));
}

#[tokio::test(start_paused = true)]
async fn what_a_thawed_replica_returns_unsettled_is_leased_again() {
    let store = ModelStore::new(BrokenRule::None);
    let (thawed, _other, id, lease) = thawed(&store).await;
    sleep(PROVED).await;
    assert!(thawed.lease("crm", 10, NOW).await.unwrap().due.is_empty());
    assert!(lease.is_revoked());
    drop(lease);
    let leases = thawed.lease("crm", 10, NOW).await.unwrap();
    assert_eq!((ids(&leases), leases.due[0].attempt), (vec![id], 1));
    assert!(!leases.due[0].is_revoked());
}

#[tokio::test(start_paused = true)]
async fn what_settles_an_attempt_that_others_have_passed_ends_no_later_lease() {
    let store = ModelStore::new(BrokenRule::None);
    let (thawed, other, id, lease) = thawed(&store).await;
    let taken_over = other.lease("crm", 10, NOW).await.unwrap();
    assert_eq!(ids(&taken_over), [id]);
    other.settle(settlement(id, "crm", Disposition::Retry(NOW), 1)).await.unwrap();
    drop(taken_over);
    sleep(PROVED).await;
    let second = thawed.lease("crm", 10, NOW).await.unwrap();
    assert_eq!((ids(&second), second.due[0].attempt), (vec![id], 2));
    thawed.settle(settlement(id, "crm", Disposition::Retry(NOW), 1)).await.unwrap();
    drop(lease);
    sleep(FREED).await;
    assert!(other.lease("crm", 10, NOW).await.unwrap().due.is_empty(), "attempted twice at once");
    assert!(!second.due[0].is_revoked());
    thawed.settle(settlement(id, "crm", Disposition::End(DeliveryState::Delivered), 2)).await.unwrap();
    assert!(store.rows().deliveries.values().all(|row| row.state == DeliveryState::Delivered));
}
