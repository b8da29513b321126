//! Encrypted payloads through [`Queue`] and [`Inspect`]: stored, read back, refused; and when a key may be removed.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rusqlite::Connection;
use tempfile::TempDir;

use super::conformance::{NOW, new_event, settlement};
use super::*;

const FAR: Duration = Duration::from_hours(24 * 365_000);

fn keys(fills: &[u8]) -> EncryptionKeys {
    let key = |fill: &u8| EncryptionKey::parse(&STANDARD.encode([*fill; 32])).unwrap();
    EncryptionKeys::new(fills.iter().map(key).collect())
}

fn fingerprint(fill: u8) -> Fingerprint {
    keys(&[fill]).first().unwrap().fingerprint()
}

fn open(folder: &Path, fills: &[u8]) -> Result<Queue, Error> {
    let path = folder.to_owned();
    let encryption_keys = keys(fills);
    Queue::open(
        &Settings {
            path,
            retention: FAR,
            dedup_window: FAR,
            replay_window: FAR,
            max_size: 1 << 40,
            max_memory: 64 << 20,
            encryption_keys,
        },
        drop,
    )
}

fn inspect(folder: &Path, fills: &[u8]) -> Inspect {
    Inspect::open(folder).unwrap().with_keys(&keys(fills))
}

fn shell(folder: &Path) -> Connection {
    Connection::open(folder.join("wxrelay.db")).unwrap()
}

fn texts(folder: &Path, sql: &str) -> Vec<Option<String>> {
    let shell = shell(folder);
    let mut find = shell.prepare(sql).unwrap();
    find.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
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

fn flaws(inspect: &Inspect) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let newest = inspect.newest().unwrap().unwrap();
    assert!(inspect.read_back(None, newest, |read| flaws.extend(read.flaws)).unwrap().is_some());
    flaws
}

async fn closed(folder: &Path, fills: &[u8], contents: &[&str]) -> Vec<EventId> {
    let queue = open(folder, fills).unwrap();
    let mut ids = Vec::new();
    for content in contents {
        ids.push(store(&queue, content).await.event.id);
    }
    queue.close().await;
    ids
}

#[tokio::test]
async fn what_was_sealed_comes_back_whole_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let queue = open(folder.path(), &[1]).unwrap();
    let first = store(&queue, "an open secret").await;
    let id = first.event.id;
    queue.record_reply(id, "a secret reply".to_owned()).await.unwrap();
    queue.close().await;

    let queue = open(folder.path(), &[1]).unwrap();
    let back = leased(&queue).await.pop().unwrap();
    let parts = |event: &Event| (event.query.clone(), event.body.clone(), event.clear.clone());
    assert_eq!(parts(&back), parts(&first.event));
    let again = queue.enqueue(first).await.unwrap();
    assert!(matches!(&again, Enqueued::Duplicate { reply: Some(reply), .. } if reply == "a secret reply"), "{again:?}");
    kill(&queue, id).await;

    let inspect = inspect(folder.path(), &[1]);
    let detail = inspect.event(id).unwrap().unwrap();
    assert!(detail.text.contains("an open secret") && detail.sealed.is_none(), "{detail:?}");
    assert_eq!(detail.reply.as_deref(), Some("a secret reply"));
    assert_eq!(detail.deliveries[0].attempts[0].answer.as_deref(), Some("busy"));
    assert_eq!(inspect.dead(None, 1, None).unwrap()[0].answer.as_deref(), Some("busy"));
    assert_eq!(flaws(&inspect), []);
}

#[tokio::test]
async fn a_store_that_was_sealed_by_an_earlier_build_opens() {
    let folder = TempDir::new().unwrap();
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/store/v3.db");
    std::fs::copy(stored, folder.path().join("wxrelay.db")).unwrap();
    open(folder.path(), &[0x42]).unwrap().close().await;
    let inspect = inspect(folder.path(), &[0x42]);
    assert_eq!(flaws(&inspect), []);
    let detail = inspect.event(inspect.newest().unwrap().unwrap()).unwrap().unwrap();
    assert!(detail.text.contains("<Content><![CDATA[hello]]></Content>"), "{detail:?}");
    assert!(detail.reply.is_some_and(|reply| reply.contains("stored by schema 3")));
}

#[tokio::test]
async fn a_reply_that_is_known_at_once_is_sealed_too() {
    let folder = TempDir::new().unwrap();
    let queue = open(folder.path(), &[1]).unwrap();
    let new = || NewEvent { reply: Some("Welcome!".to_owned()), ..new_event(queue.next_id(NOW), "hello", &["crm"]) };
    assert!(matches!(queue.enqueue(new()).await.unwrap(), Enqueued::Fresh));
    let again = queue.enqueue(new()).await.unwrap();
    assert!(matches!(again, Enqueued::Duplicate { reply: Some(reply), .. } if reply == "Welcome!"));
    assert_eq!(texts(folder.path(), "SELECT typeof(reply) FROM event"), [Some("blob".to_owned())]);
    assert_eq!(texts(folder.path(), "SELECT reply FROM events"), [Some("sealed".to_owned())]);
}

#[tokio::test]
async fn the_views_say_sealed_and_what_was_in_the_clear_stays_so_with_all_that_comes_later() {
    let folder = TempDir::new().unwrap();
    let old = closed(folder.path(), &[], &["in the clear"]).await[0];
    let queue = open(folder.path(), &[1]).unwrap();
    let new = store(&queue, "behind a seal").await.event.id;
    for event in [old, new] {
        queue.record_reply(event, "a reply".to_owned()).await.unwrap();
        kill(&queue, event).await;
    }
    let some = |text: &str| Some(text.to_owned());
    let shown = |sql| texts(folder.path(), sql);
    assert!(shown("SELECT text FROM events ORDER BY id")[0].as_ref().unwrap().contains("in the clear"));
    assert_eq!(shown("SELECT text FROM events ORDER BY id")[1..], [some("sealed")]);
    assert_eq!(shown("SELECT reply FROM events ORDER BY id"), [some("a reply"), some("sealed")]);
    assert_eq!(shown("SELECT answer FROM attempts ORDER BY event"), [some("busy"), some("sealed")]);
    let inspect = inspect(folder.path(), &[1]);
    assert_eq!(inspect.encryption_status().unwrap(), EncryptionStatus { keys: vec![fingerprint(1)], in_clear: true });
    assert_eq!(flaws(&inspect), []);
}

#[tokio::test]
async fn what_stands_in_another_place_does_not_open() {
    for swap in [
        "CREATE TEMP TABLE both AS SELECT id, clear FROM event; \
         UPDATE event SET clear = (SELECT clear FROM both WHERE both.id <> event.id)",
        "UPDATE event SET query = body, body = query",
        "UPDATE event SET clear = body",
        "UPDATE event SET body = substr(body, 1, length(body) - 1)",
        "UPDATE event SET query = 'timestamp=1'",
        "UPDATE event SET clear = x''",
    ] {
        let folder = TempDir::new().unwrap();
        closed(folder.path(), &[1], &["one", "two"]).await;
        shell(folder.path()).execute_batch(swap).unwrap();
        let inspect = inspect(folder.path(), &[1]);
        assert_eq!(
            flaws(&inspect),
            [Flaw::Encrypted(DecryptError::Damaged), Flaw::Encrypted(DecryptError::Damaged)],
            "{swap}"
        );
        let queue = open(folder.path(), &[1]).unwrap();
        assert_eq!(leased(&queue).await.len(), 0, "{swap}");
        assert_eq!(inspect.dead(None, 10, None).unwrap().len(), 2, "{swap}");
        assert!(inspect.audit().unwrap().is_clean(), "{swap}");
    }
}

#[tokio::test]
async fn replies_and_answers_in_another_place_do_not_open_and_stop_nothing() {
    let folder = TempDir::new().unwrap();
    let queue = open(folder.path(), &[1]).unwrap();
    let (one, two) = (store(&queue, "one").await, store(&queue, "two").await.event.id);
    for event in [one.event.id, two] {
        queue.record_reply(event, "a reply".to_owned()).await.unwrap();
        kill(&queue, event).await;
    }
    let id = one.event.id;
    let swap = |column: &str| {
        let swap = format!("UPDATE {column} WHERE {} = {}", if column.starts_with('e') { "id" } else { "event" }, id.0);
        shell(folder.path()).execute_batch(&swap).unwrap();
    };
    swap(&format!("event SET reply = (SELECT reply FROM event WHERE id = {})", two.0));
    let inspect = inspect(folder.path(), &[1]);
    assert_eq!(flaws(&inspect), [Flaw::Encrypted(DecryptError::Damaged)]);
    assert_eq!(inspect.event(id).unwrap().unwrap().reply, None);
    assert!(matches!(queue.enqueue(one).await.unwrap(), Enqueued::Duplicate { reply: None, .. }));

    queue.record_reply(id, "a reply".to_owned()).await.unwrap();
    assert_eq!(flaws(&inspect), []);
    swap(&format!("attempt SET answer = (SELECT answer FROM attempt WHERE event = {})", two.0));
    assert_eq!(flaws(&inspect), [Flaw::Encrypted(DecryptError::Damaged)]);
    let letters = inspect.dead(None, 10, None).unwrap();
    let told = letters.iter().find(|letter| letter.id == id).unwrap();
    assert!(told.answer.is_none() && told.sealed.as_ref().unwrap().contains("cannot be decrypted"), "{told:?}");
}

#[tokio::test]
async fn a_key_is_needed_until_its_last_event_has_gone() {
    let folder = TempDir::new().unwrap();
    let old = closed(folder.path(), &[1], &["by the old key"]).await[0];
    let Err(error) = open(folder.path(), &[2]) else { panic!("opened") };
    assert!(matches!(error, Error::KeyMissing { key, .. } if key == fingerprint(1)), "{error}");
    let told = error.to_string();
    assert!(told.contains(&fingerprint(1).to_string()) && told.contains("queue.encryption_keys"), "{told}");
    assert!(matches!(open(folder.path(), &[]), Err(Error::KeyMissing { .. })));

    let queue = open(folder.path(), &[2, 1]).unwrap();
    let new = store(&queue, "by the new key").await.event.id;
    assert_eq!(leased(&queue).await.len(), 2, "both open");
    kill(&queue, old).await;
    kill(&queue, new).await;
    queue.close().await;
    assert_eq!(texts(folder.path(), "SELECT CAST(key AS TEXT) FROM event ORDER BY id").len(), 2);
    assert_eq!(flaws(&inspect(folder.path(), &[1, 2])), []);

    shell(folder.path()).execute_batch("DELETE FROM event WHERE key = 1").unwrap();
    open(folder.path(), &[2]).unwrap().close().await;
    assert_eq!(inspect(folder.path(), &[]).encryption_status().unwrap().keys, [fingerprint(2)]);
    assert_eq!(texts(folder.path(), "SELECT hex(fingerprint) FROM key").len(), 1, "the old one is removed");
    shell(folder.path()).execute_batch("DELETE FROM event").unwrap();
    open(folder.path(), &[]).unwrap().close().await;
    assert_eq!(texts(folder.path(), "SELECT hex(fingerprint) FROM key").len(), 0);
}

#[tokio::test]
async fn without_the_key_lists_and_the_ledger_are_there_and_the_rest_says_which_is_missing() {
    let folder = TempDir::new().unwrap();
    let queue = open(folder.path(), &[1]).unwrap();
    let id = store(&queue, "a secret").await.event.id;
    kill(&queue, id).await;
    for others in [&[][..], &[2]] {
        let inspect = inspect(folder.path(), others);
        assert!(inspect.audit().unwrap().is_clean());
        let filter = EventFilter { from: Some("o1".to_owned()), limit: 10, ..EventFilter::default() };
        assert_eq!(inspect.events(&filter).unwrap()[0].id, id);
        let detail = inspect.event(id).unwrap().unwrap();
        let missing = DecryptError::KeyMissing(fingerprint(1));
        assert_eq!((detail.text.as_str(), detail.sealed), ("", Some(missing.to_string())));
        assert_eq!(detail.deliveries[0].attempts[0].answer, None);
        assert_eq!(inspect.dead(None, 10, None).unwrap()[0].sealed, Some(missing.to_string()));
        assert_eq!(flaws(&inspect), [Flaw::Encrypted(missing)]);
    }
    shell(folder.path()).execute_batch("DELETE FROM key").unwrap();
    assert_eq!(flaws(&inspect(folder.path(), &[1])), [Flaw::Encrypted(DecryptError::KeyUnknown)]);
}
