//! The contract of `mod.rs`, checked on every engine through nothing but [`Queue`] and [`Inspect`].
//!
//! Sweeps are in `sweep_tests.rs`, order in `order_tests.rs`. What is true of files alone is in
//! `sqlite/engine_tests.rs`.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::fixture::{
    DAY, NOW, PATIENCE, QueueFixture, TestEngine, concurrently, ids, new_event, on_every_engine, settlement,
};
use super::*;

async fn a_second_push_of_the_same_text_is_a_duplicate_of_the_first(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let first = fixture.store("hello", &["crm"]).await;
    let again = fixture.queue.enqueue(fixture.event("hello", &["crm"])).await.unwrap();
    assert!(matches!(again, Enqueued::Duplicate { id, reply: Known::Answered(None) } if id == first));
    fixture.store("hello!", &["crm"]).await;
    assert_eq!(fixture.audit().await.deliveries, 2);
}

async fn a_duplicate_is_known_with_its_reply_after_a_restart(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let first = fixture.store("late reply", &["crm"]).await;
    fixture.queue.record_reply(first, "<xml>late</xml>".to_owned(), None).await.unwrap();
    let known = NewEvent { reply: Some("<xml>known</xml>".to_owned()), ..fixture.event("known reply", &["crm"]) };
    fixture.queue.enqueue(known).await.unwrap();
    let fixture = fixture.reopen().await;
    for (content, expected) in [("late reply", "<xml>late</xml>"), ("known reply", "<xml>known</xml>")] {
        let again = fixture.queue.enqueue(fixture.event(content, &["crm"])).await.unwrap();
        assert!(
            matches!(again, Enqueued::Duplicate { reply: Known::Answered(Some(reply)), .. } if reply == expected),
            "{content}"
        );
    }
    assert_eq!(fixture.audit().await.events, 2);
}

async fn what_has_changed_in_the_store_is_not_delivered(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let changes = [
        "account = 'shoq'",
        "app_id = 'wx2'",
        "mode = 1",
        "received_at = received_at + 1",
        "traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'",
        "query = body",
        "body = clear",
        "clear = body",
        "content_key = body",
    ];
    for change in changes {
        let damaged = fixture.store(change, &["crm"]).await;
        let good = fixture.store(&format!("beside {change}"), &["crm"]).await;
        fixture.execute(&format!("UPDATE event SET {change} WHERE id = {}", damaged.0));
        let leases = fixture.lease("crm", 10, NOW).await;
        assert_eq!(ids(&leases), [good], "{change}");
        assert!(fixture.lease("crm", 10, NOW).await.due.is_empty(), "{change}");
        fixture.end(good, "crm", DeliveryState::Delivered).await;
    }
    let dead = fixture.texts("SELECT CAST(count(*) AS text) FROM delivery WHERE state = 2");
    assert_eq!(dead, [Some(changes.len().to_string())]);
}

async fn a_reply_that_has_changed_in_the_store_is_not_sent_again(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let late = fixture.store("late", &["crm"]).await;
    fixture.queue.record_reply(late, "<xml>a</xml>".to_owned(), None).await.unwrap();
    let known = NewEvent { reply: Some("<xml>b</xml>".to_owned()), ..fixture.event("known", &["crm"]) };
    fixture.queue.enqueue(known).await.unwrap();
    let other = NewEvent { reply: Some("<xml>c</xml>".to_owned()), ..fixture.event("other", &["crm"]) };
    let id = other.event.id.0;
    fixture.queue.enqueue(other).await.unwrap();
    fixture.execute(&format!("UPDATE event SET reply = (SELECT o.reply FROM event o WHERE o.id = {id})"));
    for content in ["late", "known"] {
        let again = fixture.queue.enqueue(fixture.event(content, &["crm"])).await.unwrap();
        assert!(matches!(again, Enqueued::Duplicate { reply: Known::Answered(None), .. }), "{content}: {again:?}");
    }
}

async fn a_fresh_event_goes_to_each_inbox_and_the_awaited_one_can_reply(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let mut crm = fixture.queue.subscribe("crm".into(), 8);
    let mut bot = fixture.queue.subscribe("bot".into(), 8);
    let (reply, mut answer) = oneshot::channel();
    let new = NewEvent {
        awaited: vec![(
            "bot".into(),
            AwaitedReply { until: NOW, first: true, tries: Default::default(), sender: reply },
        )],
        ..fixture.event("hi", &["crm", "bot"])
    };
    let id = new.event.id;
    fixture.queue.enqueue(new).await.unwrap();
    let (to_crm, to_bot) = (crm.fresh.recv().await.unwrap(), bot.awaited.recv().await.unwrap());
    assert_eq!((to_crm.event.id, to_crm.attempt, &*to_crm.target), (id, 1, "crm"));
    assert!(to_crm.reply.is_none() && to_bot.reply.is_some());
    assert!(fixture.lease("crm", 10, NOW).await.due.is_empty(), "leased already");
    drop(to_bot);
    assert!(answer.try_recv().is_err(), "told that there will be no reply");
}

async fn what_does_not_fit_the_inbox_is_leased_from_the_store(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 2);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let mut stored = Vec::new();
    for content in ["1", "2", "3", "4"] {
        stored.push(fixture.store(content, &["crm"]).await);
    }
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let (first, second) = (inbox.fresh.recv().await.unwrap(), inbox.fresh.recv().await.unwrap());
    assert_eq!([first.event.id, second.event.id], stored[..2]);
    let rest = fixture.lease("crm", 10, NOW).await;
    assert_eq!(ids(&rest), stored[2..]);
    assert_eq!(rest.next_due, None);
    let event = &rest.due[0].event;
    let original = new_event(stored[2], "3", &["crm"]).event;
    assert_eq!(format!("{event:?}"), format!("{original:?}"), "read back as it was");
    assert_eq!((&event.clear, &event.query), (&original.clear, &original.query));
}

async fn leases_come_oldest_first_and_name_the_next_moment(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let (a, b, c) =
        (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm"]).await, fixture.store("c", &["crm"]).await);
    fixture.queue.settle(settlement(a, "crm", Disposition::Retry(NOW.after(DAY)), 1)).await.unwrap();
    let first = fixture.lease("crm", 1, NOW).await;
    assert_eq!((ids(&first), first.next_due), (vec![b], Some(NOW)), "c is due as well");
    let second = fixture.lease("crm", 1, NOW).await;
    assert_eq!((ids(&second), second.next_due), (vec![c], Some(NOW.after(DAY))));
    let third = fixture.lease("crm", 1, NOW.after(DAY)).await;
    assert_eq!((ids(&third), third.next_due), (vec![a], None));
    assert_eq!((third.due[0].attempt, third.due[0].failures), (2, 1));
    assert!(fixture.lease("nobody", 1, NOW).await.due.is_empty());
}

async fn a_retry_wakes_the_consumer_and_frees_the_delivery(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    let id = fixture.store("a", &["crm"]).await;
    let lease = inbox.fresh.recv().await.unwrap();
    let due = NOW.after(Duration::from_secs(5));
    fixture.queue.settle(settlement(id, "crm", Disposition::Retry(due), 1)).await.unwrap();
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    assert_eq!(fixture.lease("crm", 1, NOW).await.next_due, Some(due));
    let again = fixture.lease("crm", 1, due).await;
    drop(lease);
    assert_eq!(ids(&again), [id]);
    assert!(fixture.lease("crm", 1, due).await.due.is_empty(), "the first lease's end does not free the second");
    assert_eq!(fixture.audit().await.counts.pending, 1);
}

/// The clock is set back while the settlement waits for the store: the due time is pulled in there, or never.
async fn a_retry_timed_by_a_clock_that_was_set_back_waits_no_longer(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let id = fixture.store("a", &["crm"]).await;
    let (ahead, wait) = (UnixMillis::now().after(Duration::from_secs(3 * 3600)), Duration::from_secs(5));
    let late = settlement(id, "crm", Disposition::Retry(ahead.after(wait)), 1);
    fixture.queue.settle(Settlement { decided_at: ahead, ..late }).await.unwrap();
    let due = fixture.lease("crm", 1, UnixMillis(0)).await.next_due.unwrap();
    assert!(due <= UnixMillis::now().after(wait), "due in {:?}", due.since(UnixMillis::now()));
}

async fn a_lease_that_is_dropped_unsettled_is_had_again(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    let (a, b) = (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm"]).await);
    let attempted = inbox.fresh.recv().await.unwrap();
    assert!(fixture.lease("crm", 10, NOW).await.due.is_empty());
    // As when a task is cancelled, and a target is taken out of the configuration and put back.
    drop(attempted);
    drop(inbox);
    let later = fixture.queue.subscribe("crm".into(), 8);
    timeout(PATIENCE, later.wake.notified()).await.unwrap();
    assert_eq!(ids(&fixture.lease("crm", 10, NOW).await), [a, b]);
}

async fn a_consumer_is_told_of_leases_that_were_dropped(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
    fixture.store("a", &["crm"]).await;
    drop(inbox.fresh.recv().await);
    timeout(PATIENCE, inbox.wake.notified()).await.unwrap();
}

async fn a_delivery_ends_once(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let id = fixture.store("a", &["crm", "bot"]).await;
    fixture.end(id, "crm", DeliveryState::Delivered).await;
    fixture.end(id, "crm", DeliveryState::Dead).await;
    fixture.queue.settle(settlement(id, "crm", Disposition::Retry(NOW), 2)).await.unwrap();
    fixture.end(id, "nobody", DeliveryState::Dead).await;
    fixture.end(EventId(7), "crm", DeliveryState::Dead).await;
    let counts = fixture.audit().await.counts;
    assert_eq!((counts.delivered, counts.pending, counts.total()), (1, 1, 2));
    let detail = fixture.inspect().await.event(id).await.unwrap().unwrap();
    assert_eq!(detail.deliveries[1].attempts.len(), 1, "what came too late left no trace");
}

async fn every_state_is_accounted_for(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    for (place, state) in DeliveryState::ALL.into_iter().enumerate() {
        let id = fixture.store(&place.to_string(), &["crm", "bot"]).await;
        fixture.audit().await;
        if state != DeliveryState::Pending {
            let end = Settlement { attempt: None, ..settlement(id, "crm", Disposition::End(state), 1) };
            fixture.queue.settle(end).await.unwrap();
        }
        fixture.audit().await;
    }
    let (audit, stats) = (fixture.audit().await, fixture.queue.stats().await.unwrap());
    assert_eq!((audit.events, audit.deliveries, audit.counts.pending), (5, 10, 6));
    let counts: Vec<_> = audit.targets.iter().map(|part| (part.target.as_str(), part.counts)).collect();
    let quick: Vec<_> = stats.targets.iter().map(|part| (part.target.as_str(), part.counts)).collect();
    assert_eq!(counts, quick);
    assert_eq!(stats.events, 5);
    assert_eq!(stats.targets[0].oldest_pending, Some(NOW));
    assert!(stats.bytes > 0);
}

async fn those_who_wait_share_commits(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let before = fixture.commits();
    concurrently((0..200).map(|n| {
        let new = fixture.event(&n.to_string(), &["crm"]);
        async { assert!(matches!(fixture.queue.enqueue(new).await.unwrap(), Enqueued::Fresh)) }
    }))
    .await;
    let commits = fixture.commits() - before;
    assert!(commits < 100, "{commits} commits for 200 events");
    assert_eq!(fixture.audit().await.events, 200);
}

async fn a_crash_loses_nothing_that_was_answered_and_frees_all_leases(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    let (a, b) = (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm"]).await);
    let _leases = (inbox.fresh.recv().await.unwrap(), inbox.fresh.recv().await.unwrap());
    fixture.end(a, "crm", DeliveryState::Delivered).await;
    let after = fixture.crashed().await;
    assert_eq!(after.audit().await, fixture.audit().await);
    assert_eq!(ids(&after.lease("crm", 10, NOW).await), [b]);
    assert!(after.queue.next_id(UnixMillis(0)) > b, "ids go on where they were");
}

async fn closing_commits_what_waits_and_refuses_the_rest(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let other = fixture.queue.clone();
    let waiting = new_event(EventId(1), "a", &["crm"]);
    let late = new_event(EventId(2), "b", &["crm"]);
    let (stored, ()) = tokio::join!(other.enqueue(waiting), fixture.queue.clone().close());
    assert!(matches!(stored.unwrap(), Enqueued::Fresh));
    assert!(matches!(other.enqueue(late).await, Err(Error::Closed)));
    assert_eq!(fixture.reopen().await.audit().await.events, 1);
}

async fn lists_are_filtered_and_paged(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let (a, b) = (fixture.store("a", &["crm"]).await, fixture.store("b", &["crm", "bot"]).await);
    fixture.end(a, "crm", DeliveryState::Dead).await;
    fixture.end(b, "bot", DeliveryState::Dead).await;
    let inspect = fixture.inspect().await;
    let found = async |filter: EventFilter| -> Vec<EventId> {
        let filter = EventFilter { limit: 10, ..filter };
        inspect.events(&filter).await.unwrap().iter().map(|summary| summary.id).collect()
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(found(EventFilter::default()).await, [b, a]);
    assert_eq!(found(EventFilter { before: Some(b), ..EventFilter::default() }).await, [a]);
    assert_eq!(
        found(EventFilter { since: Some(NOW), until: Some(NOW.after(DAY)), ..EventFilter::default() }).await,
        [b, a]
    );
    assert!(found(EventFilter { until: Some(NOW), ..EventFilter::default() }).await.is_empty());
    assert_eq!(found(EventFilter { target: some("bot"), ..EventFilter::default() }).await, [b]);
    assert_eq!(found(EventFilter { state: Some(DeliveryState::Pending), ..EventFilter::default() }).await, [b]);
    assert_eq!(
        found(EventFilter { target: some("crm"), state: Some(DeliveryState::Dead), ..EventFilter::default() }).await,
        [a]
    );
    assert_eq!(
        found(EventFilter { event: some("TEXT"), from: some("o1"), account: some("shop"), ..EventFilter::default() })
            .await,
        [b, a]
    );
    assert!(found(EventFilter { from: some("o2"), ..EventFilter::default() }).await.is_empty());
    let dead = async |target, before| -> Vec<(EventId, String)> {
        inspect.dead(target, 1, before).await.unwrap().into_iter().map(|letter| (letter.id, letter.target)).collect()
    };
    assert_eq!(dead(None, None).await, [(b, "bot".to_owned())]);
    assert_eq!(dead(None, Some(b)).await, [(a, "crm".to_owned())]);
    assert_eq!(dead(Some("crm"), None).await, [(a, "crm".to_owned())]);
}

async fn an_event_is_shown_with_every_attempt_and_without_its_signature(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let id = fixture.store("a", &["crm"]).await;
    fixture.queue.settle(settlement(id, "crm", Disposition::Retry(NOW), 1)).await.unwrap();
    fixture.queue.settle(settlement(id, "crm", Disposition::End(DeliveryState::Dead), 2)).await.unwrap();
    let note = AttemptNote { event: id, target: "crm".into(), attempt: 1, error: Some("noted later".to_owned()) };
    fixture.queue.annotate(note).await.unwrap();
    let inspect = fixture.inspect().await;
    let shown = serde_json::to_value(inspect.event(id).await.unwrap().unwrap()).unwrap();
    assert_eq!(shown["id"], id.to_string());
    assert_eq!(shown["received_at"], "2026-11-20T08:00:00.000Z");
    assert_eq!(shown["deliveries"][0]["state"], "dead");
    assert_eq!(shown["deliveries"][0]["attempts"][0]["error"], "noted later");
    assert_eq!(shown["deliveries"][0]["attempts"][1]["answer"], "busy");
    assert_eq!(shown["deliveries"][0]["attempts"][1]["duration_ms"], 7.0);
    assert!(shown["text"].as_str().unwrap().contains("<Content>a</Content>"));
    assert!(!shown.to_string().contains("timestamp="));
    assert_eq!(inspect.event(EventId(7)).await.unwrap(), None);
    let dead = inspect.dead(None, 10, None).await.unwrap().remove(0);
    assert_eq!((dead.error.as_deref(), dead.answer.as_deref()), (Some("503"), Some("busy")));
}

async fn a_store_is_read_while_no_relay_runs(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    fixture.store("a", &["crm"]).await;
    fixture.queue.clone().close().await;
    assert_eq!(fixture.inspect().await.audit().await.unwrap().events, 1);
}

on_every_engine!(
    a_second_push_of_the_same_text_is_a_duplicate_of_the_first,
    a_duplicate_is_known_with_its_reply_after_a_restart,
    what_has_changed_in_the_store_is_not_delivered,
    a_reply_that_has_changed_in_the_store_is_not_sent_again,
    a_fresh_event_goes_to_each_inbox_and_the_awaited_one_can_reply,
    what_does_not_fit_the_inbox_is_leased_from_the_store,
    leases_come_oldest_first_and_name_the_next_moment,
    a_retry_wakes_the_consumer_and_frees_the_delivery,
    a_retry_timed_by_a_clock_that_was_set_back_waits_no_longer,
    a_lease_that_is_dropped_unsettled_is_had_again,
    a_consumer_is_told_of_leases_that_were_dropped,
    a_delivery_ends_once,
    every_state_is_accounted_for,
    those_who_wait_share_commits,
    a_crash_loses_nothing_that_was_answered_and_frees_all_leases,
    closing_commits_what_waits_and_refuses_the_rest,
    lists_are_filtered_and_paged,
    an_event_is_shown_with_every_attempt_and_without_its_signature,
    a_store_is_read_while_no_relay_runs,
);
