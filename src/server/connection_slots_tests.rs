//! Which connections are evicted, and when.

use super::*;

fn peer(address: &str) -> Peer {
    Peer(Some(address.parse().unwrap()))
}

fn with_limit(most: usize) -> Arc<ConnectionSlots> {
    ConnectionSlots::new(ConnectionLimit::new(most))
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
    let slots = with_limit(4);
    let few = acquired(&slots, "192.0.2.1").await;
    let [one, two, three] =
        [acquired(&slots, "192.0.2.9").await, acquired(&slots, "192.0.2.9").await, acquired(&slots, "192.0.2.9").await];
    exhaust(&slots).await;
    assert_eq!(evicted(&[&few, &one, &two, &three]).await, [1]);
    drop(one);
    assert!(timeout(Duration::from_millis(1), slots.acquire(peer("192.0.2.200"))).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_ipv6_customer_is_one_address() {
    let slots = with_limit(4);
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
    let slots = with_limit(3);
    let [known, failed, busy] =
        [acquired(&slots, "192.0.2.9").await, acquired(&slots, "192.0.2.9").await, acquired(&slots, "192.0.2.9").await];
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
    let slots = with_limit(4);
    let known = acquired(&slots, "192.0.2.9").await;
    known.begin_request().answered(true);
    drop(known);
    let [one, two, three] =
        [acquired(&slots, "192.0.2.9").await, acquired(&slots, "192.0.2.9").await, acquired(&slots, "192.0.2.9").await];
    let unauthenticated = acquired(&slots, "192.0.2.1").await;
    exhaust(&slots).await;
    assert_eq!(evicted(&[&one, &two, &three, &unauthenticated]).await, [3]);
    exhaust(&slots).await;
    assert_eq!(evicted(&[&one, &two, &three, &unauthenticated]).await, [0], "when no unauthenticated client is left");
}

#[tokio::test(start_paused = true)]
async fn the_set_of_authenticated_addresses_is_bounded() {
    let slots = with_limit(1);
    for number in 0..=MAX_KNOWN_ADDRESSES as u32 {
        let address = std::net::Ipv4Addr::from_bits(number).to_string();
        acquired(&slots, &address).await.begin_request().answered(true);
    }
    assert_eq!(slots.idle.lock().authenticated.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_during_eviction_is_answered() {
    let slots = with_limit(1);
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
    let slots = with_limit(2);
    for _ in 0..10 {
        let (one, two) = (acquired(&slots, "192.0.2.1").await, acquired(&slots, "192.0.2.2").await);
        let under_way = two.begin_request();
        drop((one, two, under_way));
    }
    assert_eq!(slots.open.load(Ordering::Relaxed), 0);
    assert!(slots.idle.lock().connections.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_evicts_when_the_next_connection_arrives() {
    let slots = with_limit(3);
    let [one, two, three] =
        [acquired(&slots, "192.0.2.9").await, acquired(&slots, "192.0.2.9").await, acquired(&slots, "192.0.2.9").await];
    slots.limit.set(2);
    exhaust(&slots).await;
    assert_eq!(evicted(&[&one, &two, &three]).await, [0]);
    drop(one);
    exhaust(&slots).await;
    assert_eq!(evicted(&[&two, &three]).await, [0]);
    drop(two);
    assert!(timeout(Duration::from_millis(1), slots.acquire(peer("192.0.2.200"))).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn eviction_begins_before_the_last_slot_is_taken_and_does_not_overshoot() {
    let slots = with_limit(64);
    let mut open = Vec::new();
    for _ in 0..63 {
        open.push(acquired(&slots, "192.0.2.9").await);
    }
    assert_eq!(evicted(&open.iter().collect::<Vec<_>>()).await, [0, 1], "when two slots were left");
    let _last = acquired(&slots, "192.0.2.9").await;
    assert_eq!(evicted(&open.iter().collect::<Vec<_>>()).await, [0; 0], "those that are evicted count as free");
    drop(open);
    assert_eq!(slots.evicting.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn room_is_made_of_idle_connections_only() {
    let slots = with_limit(3);
    let (idle, busy) = (acquired(&slots, "192.0.2.9").await, acquired(&slots, "192.0.2.9").await);
    let _request = busy.begin_request();
    assert_eq!(slots.make_room(), 1);
    assert_eq!(evicted(&[&idle, &busy]).await, [0]);
    assert_eq!(slots.make_room(), 0, "none is left that may be evicted");
}
