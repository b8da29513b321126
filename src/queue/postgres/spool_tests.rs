//! What a spool holds, and when it is stored.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Settings as PostgresSettings, test_server};
use crate::queue::fixture::{NOW, PATIENCE, QueueFixture, TestEngine, new_event};
use crate::queue::{DeliveryOrder, Engine, Queue, Settings};
use crate::tuning::{ReplicaTiming, Tuning};

#[tokio::test]
async fn what_is_spooled_is_not_stored_before_the_orders_of_the_targets_are_known() {
    if test_server::shared().is_none() {
        return;
    }
    let fixture = QueueFixture::open(TestEngine::Postgres).await;
    let folder = tempfile::tempdir().unwrap();
    // Of an earlier process.
    let spool = Queue::open_tuned(&Settings::for_tests(folder.path()), &Tuning::default(), drop).await.unwrap();
    for content in ["a", "b"] {
        spool.enqueue(new_event(spool.next_id(NOW), content, &["crm"])).await.unwrap();
    }
    spool.close().await;

    let Engine::Postgres(postgres) = fixture.settings.engine.clone() else { panic!("of PostgreSQL") };
    let postgres = PostgresSettings { spool: Some(folder.path().to_owned()), ..*postgres };
    let settings = Settings { engine: Engine::Postgres(postgres.into()), ..fixture.settings.clone() };
    let replica = ReplicaTiming { beat: Duration::from_millis(20), ..ReplicaTiming::default() };
    let queue = Queue::open_tuned(&settings, &Tuning { replica, ..Tuning::default() }, drop).await.unwrap();
    let stored = || fixture.texts("SELECT count(*)::text FROM event").remove(0).unwrap();
    let beat = || fixture.texts("SELECT max(alive_at)::text FROM replica WHERE slot = 1");
    for _ in 0..5 {
        let seen = beat();
        while beat() == seen {
            // The replica's tasks are of this thread.
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(stored(), "0");
    }
    queue.keep_order(&"crm".into(), DeliveryOrder::PerUser);
    queue.begin_draining();
    let drained = async {
        while stored() != "2" {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, drained).await.unwrap();
    assert_eq!(fixture.texts("SELECT count(usr)::text FROM delivery"), [Some("2".to_owned())], "in order");
    queue.close().await;
}
