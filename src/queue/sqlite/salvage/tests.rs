//! Stores that SQLite made, damaged in every part: what is read back, and that nothing is lost in silence.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::log_format::{FRAME, HEADER, PAGE};
use super::*;
use crate::clock::UnixMillis;
use crate::event::{ContentKey, Event};
use crate::queue::sqlite::SqliteReader;
use crate::queue::{AttemptRecord, DeliveryState, Disposition, EncryptionKey, NewEvent, Settings, Settlement};
use crate::wechat::{Message, Mode};

const EVENTS: u64 = 60;

/// The states of an event's deliveries to `crm` and `erp`, and what it was answered.
type Stored = BTreeMap<EventId, (Vec<(String, String)>, String)>;

fn keys(is_encrypted: bool) -> EncryptionKeys {
    let key = || EncryptionKey::parse(&STANDARD.encode([7; 32])).unwrap();
    EncryptionKeys::new(if is_encrypted { vec![key()] } else { Vec::new() })
}

async fn open(folder: &Path, is_encrypted: bool) -> Queue {
    let (dedup_window, encryption_keys) = (std::time::Duration::from_secs(1), keys(is_encrypted));
    let settings = Settings { dedup_window, encryption_keys, ..Settings::for_tests(folder) };
    Queue::open(&settings, |_| {}).await.unwrap()
}

fn event(number: u64) -> NewEvent {
    // Some texts fill pages of their own.
    let long = "x".repeat(if number.is_multiple_of(7) { 9000 } else { 10 });
    let clear = format!(
        "<xml><FromUserName>o{}</FromUserName><CreateTime>{number}</CreateTime><MsgType>text</MsgType>\
         <Content>text {number} {long}</Content></xml>",
        number % 5
    );
    let clear = Bytes::from(clear);
    let message = Message::parse(&clear).unwrap();
    let key = ContentKey::of("wx1", &message, &clear);
    let event = Event {
        id: EventId::first_at(UnixMillis(1_790_000_000_000 + number.cast_signed())),
        account: "shop".into(),
        app_id: "wx1".into(),
        mode: Mode::Secure,
        received_at: UnixMillis(1_790_000_000_000),
        query: format!("nonce={number}"),
        body: Bytes::from(format!("<xml><Encrypt>{number}</Encrypt></xml>")),
        clear,
        message,
        traceparent: None,
    };
    let reply = number.is_multiple_of(3).then(|| format!("reply {number}"));
    let targets = vec!["crm".into(), "erp".into()];
    NewEvent { event: Arc::new(event), key, targets, reply, awaited: Vec::new() }
}

/// Fills a store: of `crm`'s deliveries a third each is delivered, dead and pending; all of `erp`'s are pending.
async fn fill(queue: &Queue) {
    for number in 0..EVENTS {
        let new = event(number);
        let id = new.event.id;
        queue.enqueue(new).await.unwrap();
        let state = match number % 3 {
            0 => DeliveryState::Delivered,
            1 => DeliveryState::Dead,
            _ => continue,
        };
        let answer = Some(format!("answer {number}").into_bytes());
        let (at, duration) = (UnixMillis(1_790_000_000_001), std::time::Duration::from_millis(3));
        let attempt = AttemptRecord { number: 1, at, duration, status: Some(200), error: None, answer };
        let disposition = Disposition::End(state);
        queue
            .settle(Settlement {
                event: id,
                target: "crm".into(),
                disposition,
                decided_at: UnixMillis(0),
                attempt: Some(attempt),
                reply: None,
            })
            .await
            .unwrap();
    }
}

/// The files of a filled store, as a process that was killed leaves them: the log is part of it, or not.
async fn files(is_encrypted: bool, with_log: bool) -> (Vec<u8>, Vec<u8>, Stored) {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), is_encrypted).await;
    fill(&queue).await;
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap_or_default();
    let files = if with_log { (read("wxrelay.db"), read("wxrelay.db-wal")) } else { (Vec::new(), Vec::new()) };
    queue.close().await;
    let stored = stored(folder.path(), is_encrypted);
    assert_eq!(stored.len(), EVENTS as usize);
    let (database, log) = if with_log { files } else { (read("wxrelay.db"), Vec::new()) };
    (database, log, stored)
}

fn stored(folder: &Path, is_encrypted: bool) -> Stored {
    let inspect = SqliteReader::open(folder).unwrap().with_keys(&keys(is_encrypted));
    assert!(inspect.audit().unwrap().is_clean());
    let listed = inspect.events(&crate::queue::EventFilter { limit: 1000, ..Default::default() }).unwrap();
    let detail = |id| {
        let event = inspect.event(id).unwrap().unwrap();
        let delivery = |one: &crate::queue::view::DeliveryDetail| {
            let answers: Vec<_> = one.attempts.iter().map(|attempt| attempt.answer.clone()).collect();
            (one.target.clone(), format!("{} {answers:?}", one.state.name()))
        };
        (event.deliveries.iter().map(delivery).collect(), format!("{:?}\n{}", event.reply, event.text))
    };
    listed.iter().map(|event| (event.id, detail(event.id))).collect()
}

/// Puts a damaged store beside a new one.
fn beside(database: &[u8], log: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged-20261120T080000Z");
    fs::create_dir(&damaged).unwrap();
    for (name, bytes) in [("wxrelay.db", database), ("wxrelay.db-wal", log)] {
        if !bytes.is_empty() {
            fs::write(damaged.join(name), bytes).unwrap();
        }
    }
    folder
}

async fn salvage(folder: &Path, is_encrypted: bool) -> (SalvagedStore, Stored) {
    let queue = open(folder, is_encrypted).await;
    let order = Salvage { store: folder.to_owned(), from: None, dry_run: false, keys: keys(is_encrypted) };
    let mut report = run(&queue, &order).await.unwrap();
    queue.close().await;
    (report.stores.pop().unwrap(), stored(folder, is_encrypted))
}

#[tokio::test]
async fn a_whole_store_is_read_back_with_states_replies_and_answers() {
    for (is_encrypted, with_log) in [(false, false), (false, true), (true, false), (true, true)] {
        let (database, log, before) = files(is_encrypted, with_log).await;
        let folder = beside(&database, &log);
        let (done, after) = salvage(folder.path(), is_encrypted).await;
        assert_eq!((done.unreadable, done.incomplete, done.damaged_pages), (0, 0, 0), "{done:?}");
        assert_eq!(after, before);
        assert_eq!([done.events, done.stored, done.pending, done.dead, done.ended], [60, 60, 80, 20, 20]);
        assert!(list_damaged(folder.path()).unwrap().is_empty());
        assert!(Path::new(done.salvaged_as.as_ref().unwrap()).join("wxrelay.db").exists());
    }
}

#[tokio::test]
async fn what_is_there_is_not_stored_twice_and_a_dry_run_changes_nothing() {
    let (database, log, before) = files(false, false).await;
    let folder = beside(&database, &log);
    let queue = open(folder.path(), false).await;
    queue.enqueue(event(3)).await.unwrap();
    let mut order = Salvage { store: folder.path().to_owned(), from: None, dry_run: true, keys: keys(false) };
    let dry = run(&queue, &order).await.unwrap().stores.pop().unwrap();
    assert_eq!((dry.events, dry.stored, dry.salvaged_as), (EVENTS, 0, None));
    assert_eq!(queue.stats().await.unwrap().events, 1);
    order.dry_run = false;
    let done = run(&queue, &order).await.unwrap().stores.pop().unwrap();
    assert_eq!((done.stored, done.present), (EVENTS - 1, 1));
    assert!(run(&queue, &order).await.unwrap().stores.is_empty());
    order.from = Some(PathBuf::from(done.salvaged_as.unwrap()));
    let again = run(&queue, &order).await.unwrap().stores.pop().unwrap();
    assert_eq!((again.stored, again.present, again.salvaged_as), (0, EVENTS, None));
    queue.close().await;
    assert_eq!(stored(folder.path(), false).len(), before.len());
}

#[tokio::test]
async fn without_its_key_an_event_is_left_where_it_is() {
    let (database, log, before) = files(true, false).await;
    let folder = beside(&database, &log);
    let (done, after) = salvage(folder.path(), false).await;
    assert_eq!((done.unreadable, done.salvaged_as, after.len()), (EVENTS, None, 0));
    let (done, after) = salvage(folder.path(), true).await;
    assert_eq!((done.unreadable, after), (0, before));
}

/// By xorshift: the bytes need no more than to look like damage.
fn next_byte(random: &mut u64) -> u8 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random as u8
}

/// Every event is there with all that is pending, or named.
fn assert_nothing_is_lost_in_silence(done: &SalvagedStore, before: &Stored, after: &Stored) {
    for (id, (deliveries, text)) in before {
        let named = done.flaws.iter().any(|flaw| flaw.event == *id);
        match after.get(id) {
            None => assert!(named, "{id} is lost in silence: {done:?}"),
            Some((found, found_text)) => {
                // A damaged reply is left out: WeChat's retry is answered without it.
                let text_of = |both: &str| both.split_once('\n').map(|(_, text)| text.to_owned());
                assert_eq!(text_of(found_text), text_of(text), "{id}");
                for (target, state) in deliveries.iter().filter(|(_, state)| state.starts_with("pending")) {
                    let is_pending = found.iter().any(|(name, state)| name == target && state.starts_with("pending"));
                    assert!(is_pending || named, "{id} {target} {state}: {found:?} {done:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_page_costs_what_is_on_it_and_nothing_is_lost_in_silence() {
    let (database, _, before) = files(false, false).await;
    let pages = database.len() / PAGE;
    let (mut unreadable, mut random) = (0, 88_172_645_463_325_252_u64);
    for page in (0..pages).step_by(3) {
        let mut damaged = database.clone();
        for byte in &mut damaged[page * PAGE..(page + 1) * PAGE] {
            *byte = next_byte(&mut random);
        }
        let folder = beside(&damaged, &[]);
        let (done, after) = salvage(folder.path(), false).await;
        assert_nothing_is_lost_in_silence(&done, &before, &after);
        unreadable += done.unreadable;
    }
    assert!(unreadable > EVENTS / 6, "a page of events takes its events along: {unreadable}");
}

#[tokio::test]
async fn behind_a_flipped_bit_in_the_log_everything_is_read() {
    let (database, log, before) = files(false, true).await;
    let frames = (log.len() - HEADER) / FRAME;
    assert!(frames > 20, "{frames}");
    for at in [0, 9, 17, HEADER + 1, HEADER + 9, HEADER + FRAME + 17, frames / 2 * FRAME + HEADER + 6] {
        let mut damaged = log.clone();
        damaged[at] ^= 4;
        let folder = beside(&database, &damaged);
        let (done, after) = salvage(folder.path(), false).await;
        assert_nothing_is_lost_in_silence(&done, &before, &after);
        assert_eq!((after.len(), done.unreadable), (before.len(), 0), "flipped at {at}: {done:?}");
    }
    // The log alone: SQLite would delete it.
    let folder = beside(&[], &log);
    let (done, after) = salvage(folder.path(), false).await;
    assert_eq!((after, done.unreadable), (before, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3))]
    #[test]
    fn flipped_bits_lose_nothing_in_silence(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 8),
        in_log in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let (database, log, before) = files(false, in_log).await;
            for (place, bit) in &flips {
                let (mut database, mut log) = (database.clone(), log.clone());
                let bytes = if in_log { &mut log } else { &mut database };
                let at = place.index(bytes.len());
                bytes[at] ^= 1 << bit;
                let folder = beside(&database, &log);
                let (done, after) = salvage(folder.path(), false).await;
                assert_nothing_is_lost_in_silence(&done, &before, &after);
            }
        });
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(mut random in 1_u64.., length in 4096..20_000_usize, kind in 0..4_usize) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes: Vec<u8> = (0..length).map(|_| next_byte(&mut random)).collect();
        bytes[0] = [0x0d, 0x0a, 0x02, 0x53][kind];
        fs::write(folder.path().join("wxrelay.db"), &bytes).unwrap();
        fs::write(folder.path().join("wxrelay.db-wal"), &bytes).unwrap();
        let pages = DamagedPages::open(folder.path()).unwrap();
        Stage::fill(folder.path(), &pages).unwrap();
    }
}
