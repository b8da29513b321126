//! What is true of a store of files, checked through nothing but [`Queue`] and [`Inspect`]; the rest of the contract is
//! in `conformance.rs`.

use crate::queue::fixture::{NOW, QueueFixture, TestEngine, new_event, settlement};
use crate::queue::*;

#[tokio::test]
async fn a_queue_that_is_dropped_lets_the_store_go_with_everything_in_it() {
    let fixture = QueueFixture::open(TestEngine::Embedded).await;
    let mut inbox = fixture.queue.subscribe("crm".into(), 8);
    fixture.store("a", &["crm"]).await;
    drop(fixture.queue);
    assert!(inbox.fresh.recv().await.is_some());
    assert!(inbox.fresh.recv().await.is_none(), "ends with the queue");
    let reopened = loop {
        match Queue::open(&fixture.settings, drop).await {
            Err(Error::Locked { .. }) => tokio::task::yield_now().await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(reopened.lease("crm", 10, NOW).await.unwrap().due.len(), 1);
}

#[tokio::test]
async fn a_second_relay_is_refused() {
    let fixture = QueueFixture::open(TestEngine::Embedded).await;
    let Err(refused) = Queue::open(&fixture.settings, drop).await else { panic!("opened twice") };
    assert!(matches!(refused, Error::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{refused}");
}

#[tokio::test]
async fn a_full_store_refuses_what_is_new_and_knows_what_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::for_tests(folder.path());
    let queue = Queue::open(&settings, drop).await.unwrap();
    queue.enqueue(new_event(EventId(1), "1", &["crm"])).await.unwrap();
    queue.close().await;
    let queue = Queue::open(&Settings { max_size: 1, ..settings }, drop).await.unwrap();
    // Events are accepted until retention has found nothing to delete, soon after the start.
    let mut last = 1;
    let refused = loop {
        last += 1;
        match queue.enqueue(new_event(EventId(last), &last.to_string(), &["crm"])).await {
            Ok(_) if last < 10_000 => {}
            other => break other,
        }
    };
    assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
    let known = queue.enqueue(new_event(EventId(last + 1), "1", &["crm"])).await.unwrap();
    assert!(matches!(known, Enqueued::Duplicate { id: EventId(1), .. }));
    queue.settle(settlement(EventId(1), "crm", Disposition::End(DeliveryState::Delivered), 1)).await.unwrap();
}

#[tokio::test]
async fn a_folder_without_a_store_is_not_read() {
    let nowhere = tempfile::tempdir().unwrap();
    assert!(matches!(Inspect::open(&Settings::for_tests(nowhere.path())).await, Err(Error::Missing { .. })));
}
