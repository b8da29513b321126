//! Encrypted payloads through [`Queue`] and [`Inspect`]: stored, read back, refused; and when a key may be removed.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::fixture::{NOW, QueueFixture, TestEngine, new_event, on_every_engine, settlement};
use super::*;

fn keys(fills: &[u8]) -> EncryptionKeys {
    let key = |fill: &u8| EncryptionKey::parse(&STANDARD.encode([*fill; 32])).unwrap();
    EncryptionKeys::new(fills.iter().map(key).collect())
}

fn fingerprint(fill: u8) -> Fingerprint {
    keys(&[fill]).first().unwrap().fingerprint()
}

async fn open(engine: TestEngine, fills: &[u8]) -> QueueFixture {
    QueueFixture::open_with(engine, Tuning::default(), keys(fills)).await
}

async fn store(queue: &Queue, content: &str) -> NewEvent {
    let new = || new_event(queue.next_id(NOW), content, &["crm"]);
    let kept = new();
    let same = NewEvent { event: Arc::clone(&kept.event), ..new() };
    assert!(matches!(queue.enqueue(kept).await.unwrap(), Enqueued::Fresh));
    same
}

/// A failed attempt, which leaves the delivery dead; the target answered `busy`.
async fn kill(queue: &Queue, event: EventId) {
    queue.settle(settlement(event, "crm", Disposition::End(DeliveryState::Dead), 1)).await.unwrap();
}

async fn leased(queue: &Queue) -> Vec<Arc<Event>> {
    queue.lease("crm", 10, NOW).await.unwrap().due.into_iter().map(|lease| lease.event).collect()
}

async fn flaws(inspect: &Inspect) -> Vec<Flaw> {
    let newest = inspect.newest().await.unwrap().unwrap();
    let page = inspect.read_back(None, newest).await.unwrap();
    assert!(page.last.is_some());
    page.events.into_iter().flat_map(|event| event.flaws).collect()
}

async fn what_was_sealed_comes_back_whole_after_a_restart(engine: TestEngine) {
    let fixture = open(engine, &[1]).await;
    let first = store(&fixture.queue, "an open secret").await;
    let id = first.event.id;
    fixture.queue.record_reply(id, "a secret reply".to_owned(), None).await.unwrap();

    let fixture = fixture.reopen().await;
    let back = leased(&fixture.queue).await.pop().unwrap();
    let parts = |event: &Event| (event.query.clone(), event.body.clone(), event.clear.clone());
    assert_eq!(parts(&back), parts(&first.event));
    let again = fixture.queue.enqueue(fixture.event("an open secret", &["crm"])).await.unwrap();
    assert!(
        matches!(&again, Enqueued::Duplicate { reply: Known::Answered(Some(reply)), .. } if reply == "a secret reply"),
        "{again:?}"
    );
    kill(&fixture.queue, id).await;

    let inspect = fixture.inspect().await;
    let detail = inspect.event(id).await.unwrap().unwrap();
    assert!(detail.text.contains("an open secret") && detail.sealed.is_none(), "{detail:?}");
    assert_eq!(detail.reply.as_deref(), Some("a secret reply"));
    assert_eq!(detail.deliveries[0].attempts[0].answer.as_deref(), Some("busy"));
    assert_eq!(inspect.dead(None, 1, None).await.unwrap()[0].answer.as_deref(), Some("busy"));
    assert_eq!(flaws(&inspect).await, []);
}

async fn no_part_of_what_was_sealed_is_in_the_store(engine: TestEngine) {
    let fixture = open(engine, &[1]).await;
    let id = store(&fixture.queue, "an open secret").await.event.id;
    fixture.queue.record_reply(id, "a secret reply".to_owned(), None).await.unwrap();
    kill(&fixture.queue, id).await;
    for part in ["an open secret", "a secret reply", "busy", "timestamp=1"] {
        assert!(!fixture.holds(part), "{part}");
    }
    assert!(fixture.holds("shop"), "what is searched for is stored in the clear");
}

async fn a_reply_that_is_known_at_once_is_sealed_too(engine: TestEngine) {
    let fixture = open(engine, &[1]).await;
    let new = || NewEvent { reply: Some("Welcome!".to_owned()), ..fixture.event("hello", &["crm"]) };
    assert!(matches!(fixture.queue.enqueue(new()).await.unwrap(), Enqueued::Fresh));
    let again = fixture.queue.enqueue(new()).await.unwrap();
    assert!(matches!(again, Enqueued::Duplicate { reply: Known::Answered(Some(reply)), .. } if reply == "Welcome!"));
    assert!(!fixture.holds("Welcome!"));
    assert_eq!(fixture.texts("SELECT reply FROM events"), [Some("sealed".to_owned())]);
}

async fn the_views_say_sealed_and_what_was_in_the_clear_stays_so_with_all_that_comes_later(engine: TestEngine) {
    let fixture = open(engine, &[]).await;
    let old = store(&fixture.queue, "in the clear").await.event.id;
    let fixture = fixture.reopen_with(keys(&[1])).await.unwrap();
    let new = store(&fixture.queue, "behind a seal").await.event.id;
    for event in [old, new] {
        fixture.queue.record_reply(event, "a reply".to_owned(), None).await.unwrap();
        kill(&fixture.queue, event).await;
    }
    let some = |text: &str| Some(text.to_owned());
    let shown = |sql| fixture.texts(sql);
    assert!(shown("SELECT text FROM events ORDER BY id")[0].as_ref().unwrap().contains("in the clear"));
    assert_eq!(shown("SELECT text FROM events ORDER BY id")[1..], [some("sealed")]);
    assert_eq!(shown("SELECT reply FROM events ORDER BY id"), [some("a reply"), some("sealed")]);
    assert_eq!(shown("SELECT answer FROM attempts ORDER BY event"), [some("busy"), some("sealed")]);
    let inspect = fixture.inspect().await;
    let status = inspect.encryption_status().await.unwrap();
    assert_eq!(status, EncryptionStatus { keys: vec![fingerprint(1)], in_clear: true });
    assert_eq!(flaws(&inspect).await, []);
}

async fn what_stands_in_another_place_does_not_open(engine: TestEngine) {
    for swap in [
        "CREATE TEMP TABLE both_texts AS SELECT id, clear FROM event; \
         UPDATE event SET clear = (SELECT clear FROM both_texts WHERE both_texts.id <> event.id)",
        "UPDATE event SET query = body, body = query",
        "UPDATE event SET clear = body",
        "UPDATE event SET body = substr(body, 1, length(body) - 1)",
        "UPDATE event SET query = 'timestamp=1'",
        "UPDATE event SET clear = substr(clear, 1, 0)",
    ] {
        let fixture = open(engine, &[1]).await;
        store(&fixture.queue, "one").await;
        store(&fixture.queue, "two").await;
        fixture.queue.clone().close().await;
        fixture.execute(swap);
        let inspect = fixture.inspect().await;
        assert_eq!(
            flaws(&inspect).await,
            [Flaw::Encrypted(DecryptError::Damaged), Flaw::Encrypted(DecryptError::Damaged)],
            "{swap}"
        );
        let fixture = fixture.reopen().await;
        assert_eq!(leased(&fixture.queue).await.len(), 0, "{swap}");
        assert_eq!(inspect.dead(None, 10, None).await.unwrap().len(), 2, "{swap}");
        assert!(inspect.audit().await.unwrap().is_clean(), "{swap}");
    }
}

async fn replies_and_answers_in_another_place_do_not_open_and_stop_nothing(engine: TestEngine) {
    let fixture = open(engine, &[1]).await;
    let queue = &fixture.queue;
    let (id, two) = (store(queue, "one").await.event.id, store(queue, "two").await.event.id);
    for event in [id, two] {
        queue.record_reply(event, "a reply".to_owned(), None).await.unwrap();
        kill(queue, event).await;
    }
    let swap = |column: &str| {
        let place = if column.starts_with('e') { "id" } else { "event" };
        fixture.execute(&format!("UPDATE {column} WHERE {place} = {}", id.0));
    };
    swap(&format!("event SET reply = (SELECT reply FROM event WHERE id = {})", two.0));
    let inspect = fixture.inspect().await;
    assert_eq!(flaws(&inspect).await, [Flaw::Encrypted(DecryptError::Damaged)]);
    assert_eq!(inspect.event(id).await.unwrap().unwrap().reply, None);
    let again = queue.enqueue(fixture.event("one", &["crm"])).await.unwrap();
    assert!(matches!(again, Enqueued::Duplicate { reply: Known::Answered(None), .. }));

    // The first reply stays, so there is none when it is stored again.
    swap("event SET reply = NULL");
    queue.record_reply(id, "a reply".to_owned(), None).await.unwrap();
    assert_eq!(flaws(&inspect).await, []);
    swap(&format!("attempt SET answer = (SELECT answer FROM attempt WHERE event = {})", two.0));
    assert_eq!(flaws(&inspect).await, [Flaw::Encrypted(DecryptError::Damaged)]);
    let letters = inspect.dead(None, 10, None).await.unwrap();
    let told = letters.iter().find(|letter| letter.id == id).unwrap();
    assert!(told.answer.is_none() && told.sealed.as_ref().unwrap().contains("cannot be decrypted"), "{told:?}");
}

async fn a_key_is_needed_until_its_last_event_has_gone(engine: TestEngine) {
    let fixture = open(engine, &[1]).await;
    let old = store(&fixture.queue, "by the old key").await.event.id;
    let Err(error) = fixture.reopen_with(keys(&[2])).await else { panic!("opened") };
    assert!(matches!(error, Error::KeyMissing { key, .. } if key == fingerprint(1)), "{error}");
    let told = error.to_string();
    assert!(told.contains(&fingerprint(1).to_string()) && told.contains("queue.encryption_keys"), "{told}");
    assert!(matches!(fixture.reopen_with(keys(&[])).await, Err(Error::KeyMissing { .. })));

    let fixture = fixture.reopen_with(keys(&[2, 1])).await.unwrap();
    let new = store(&fixture.queue, "by the new key").await.event.id;
    assert_eq!(leased(&fixture.queue).await.len(), 2, "both open");
    kill(&fixture.queue, old).await;
    kill(&fixture.queue, new).await;
    assert_eq!(fixture.texts("SELECT CAST(key AS TEXT) FROM event ORDER BY id").len(), 2);
    assert_eq!(flaws(&fixture.inspect_with(keys(&[1, 2])).await).await, []);
    fixture.queue.clone().close().await;

    let stored = |fixture: &QueueFixture| fixture.texts("SELECT CAST(no AS TEXT) FROM key").len();
    fixture.execute("DELETE FROM event WHERE key = 1");
    let fixture = fixture.reopen_with(keys(&[2])).await.unwrap();
    let status = fixture.inspect_with(keys(&[])).await.encryption_status().await.unwrap();
    assert_eq!(status.keys, [fingerprint(2)]);
    assert_eq!(stored(&fixture), 1, "the old one is removed");
    fixture.queue.clone().close().await;
    fixture.execute("DELETE FROM event");
    let fixture = fixture.reopen_with(keys(&[])).await.unwrap();
    assert_eq!(stored(&fixture), 0);
}

async fn without_the_key_lists_and_the_ledger_are_there_and_the_rest_says_which_is_missing(engine: TestEngine) {
    let fixture = open(engine, &[1]).await;
    let id = store(&fixture.queue, "a secret").await.event.id;
    kill(&fixture.queue, id).await;
    for others in [&[][..], &[2]] {
        let inspect = fixture.inspect_with(keys(others)).await;
        assert!(inspect.audit().await.unwrap().is_clean());
        let filter = EventFilter { from: Some("o1".to_owned()), limit: 10, ..EventFilter::default() };
        assert_eq!(inspect.events(&filter).await.unwrap()[0].id, id);
        let detail = inspect.event(id).await.unwrap().unwrap();
        let missing = DecryptError::KeyMissing(fingerprint(1));
        assert_eq!((detail.text.as_str(), detail.sealed), ("", Some(missing.to_string())));
        assert_eq!(detail.deliveries[0].attempts[0].answer, None);
        assert_eq!(inspect.dead(None, 10, None).await.unwrap()[0].sealed, Some(missing.to_string()));
        assert_eq!(flaws(&inspect).await, [Flaw::Encrypted(missing)]);
    }
    fixture.execute("DELETE FROM key");
    assert_eq!(flaws(&fixture.inspect().await).await, [Flaw::Encrypted(DecryptError::KeyUnknown)]);
}

/// The file of that build is SQLite's.
#[tokio::test]
async fn a_store_that_was_sealed_by_an_earlier_build_opens() {
    let folder = tempfile::tempdir().unwrap();
    let stored = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/store/v3.db");
    std::fs::copy(stored, folder.path().join("wxrelay.db")).unwrap();
    let settings = Settings { encryption_keys: keys(&[0x42]), ..Settings::for_tests(folder.path()) };
    Queue::open(&settings, drop).await.unwrap().close().await;
    let inspect = Inspect::open(&settings).await.unwrap();
    assert_eq!(flaws(&inspect).await, []);
    let detail = inspect.event(inspect.newest().await.unwrap().unwrap()).await.unwrap().unwrap();
    assert!(detail.text.contains("<Content><![CDATA[hello]]></Content>"), "{detail:?}");
    assert!(detail.reply.is_some_and(|reply| reply.contains("stored by schema 3")));
}

on_every_engine!(
    what_was_sealed_comes_back_whole_after_a_restart,
    no_part_of_what_was_sealed_is_in_the_store,
    a_reply_that_is_known_at_once_is_sealed_too,
    the_views_say_sealed_and_what_was_in_the_clear_stays_so_with_all_that_comes_later,
    what_stands_in_another_place_does_not_open,
    replies_and_answers_in_another_place_do_not_open_and_stop_nothing,
    a_key_is_needed_until_its_last_event_has_gone,
    without_the_key_lists_and_the_ledger_are_there_and_the_rest_says_which_is_missing,
);
