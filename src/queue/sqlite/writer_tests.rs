//! The writer on its own: what shares a commit, full disks, other programs' locks, events that cannot be read.

use bytes::Bytes;
use tokio::sync::oneshot;

use super::super::capacity::ObstacleWatch;
use super::super::channel::channel;
use super::super::command::{Settled, Waiter};
use super::super::reserve_file::ReserveFile;
use super::*;
use crate::event::{ContentKey, Event, EventId};
use crate::queue::memory::MemoryBudget;
use crate::queue::sqlite::SqliteReader;
use crate::queue::{DeliveryState, EncryptionKeys, Settings, Settlement};
use crate::tuning::Tuning;
use crate::wechat::{Message, Mode};

fn writer(folder: &std::path::Path) -> Writer {
    let settings = Settings::for_tests(folder);
    Writer {
        clock: ClockEvidence::default(),
        pulled_in: HashMap::new(),
        store: Store::open(folder).unwrap(),
        capacity: Capacity::new(ReserveFile::find(folder), settings.max_size, ObstacleWatch::default()),
        retention: Retention::new(&settings),
        scrub: Scrub::new(folder, Tuning::default().scrub_pages),
        inboxes: Arc::default(),
        leases: LeaseTable::new(MemoryBudget::new(u64::MAX)),
        revivals: Arc::default(),
        callers: Handle::current(),
        on_commit: Box::new(drop),
        lock: StoreLock::take(folder).unwrap(),
        log: LogWatch::new(folder),
        open_options: OpenOptions {
            folder: folder.to_owned(),
            encryption_keys: EncryptionKeys::default(),
            scrub_pages: Tuning::default().scrub_pages,
            free: u64::MAX,
        },
        is_writing_back: Arc::default(),
        checked: Instant::now(),
    }
}

type AnswerReceiver<T> = oneshot::Receiver<Result<T, Error>>;

fn enqueue(id: u64, body: Vec<u8>) -> (WriterCommand, AnswerReceiver<Enqueued>) {
    let clear = Bytes::from(format!("<xml><MsgType>text</MsgType><Content>{}</Content></xml>", body.len()));
    let message = Message::parse(&clear).unwrap();
    let key = ContentKey::of("wx1", &message, &clear);
    let event = Event {
        id: EventId(id),
        account: "shop".into(),
        app_id: "wx1".into(),
        mode: Mode::Plaintext,
        received_at: UnixMillis(1),
        query: String::new(),
        body: body.into(),
        clear,
        message,
        traceparent: None,
    };
    let new = NewEvent { event: Arc::new(event), key, targets: vec!["crm".into()], reply: None, awaited: Vec::new() };
    let (waiter, answer) = Waiter::new();
    (WriterCommand::Enqueue { new, sealed: None, held: Vec::new(), waiter }, answer)
}

fn settle(id: u64) -> (WriterCommand, AnswerReceiver<Settled>) {
    let disposition = Disposition::End(DeliveryState::Delivered);
    let settlement = Settlement {
        event: EventId(id),
        target: "crm".into(),
        disposition,
        decided_at: UnixMillis(0),
        attempt: None,
        reply: None,
    };
    let (waiter, answer) = Waiter::new();
    (WriterCommand::Settle(settlement, waiter), answer)
}

#[tokio::test(start_paused = true)]
async fn a_large_batch_of_pushes_waits_for_more_and_a_small_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    let (commands, mut waiting) = channel(2 * BATCH_ENOUGH);
    for (pushes, settlements, waits) in [
        (1, 0, false),
        (BATCH_TRIGGER - 1, 0, false),
        (BATCH_TRIGGER - 1, BATCH_TRIGGER, false),
        (BATCH_TRIGGER, 0, true),
        (PUSH_BATCH_ENOUGH - 1, 0, true),
        (PUSH_BATCH_ENOUGH, 0, false),
        (0, 1, true),
        (0, BATCH_ENOUGH, false),
    ] {
        let asked = (0..pushes).map(|_| enqueue(1, Vec::new()).0).chain((0..settlements).map(|_| settle(1).0));
        for command in asked {
            commands.send(command).await.unwrap();
        }
        let (mut batch, begun) = (Vec::new(), Instant::now());
        assert!(writer.fill_batch(&mut batch, &mut waiting).await);
        assert_eq!(batch.len(), pushes + settlements);
        assert_eq!(begun.elapsed() > Duration::ZERO, waits, "{pushes} pushes, {settlements} settlements");
    }
}

#[tokio::test]
async fn a_commit_begins_when_there_are_enough_and_a_push_ends_the_wait_of_settlements() {
    let (commands, mut waiting) = channel(2 * BATCH_ENOUGH);
    let never = Instant::now() + Duration::from_secs(3600);
    let mut batch = Vec::new();
    let more = async {
        for id in 0..PUSH_BATCH_ENOUGH as u64 {
            commands.send(enqueue(id, Vec::new()).0).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(waiting.gather(&mut batch, PUSH_BATCH_ENOUGH, false, never), more);
    assert_eq!(batch.len(), PUSH_BATCH_ENOUGH);
    batch.clear();
    let push_after_settlements = async {
        for id in 0..3 {
            commands.send(settle(id).0).await.unwrap();
            tokio::task::yield_now().await;
        }
        commands.send(enqueue(1, Vec::new()).0).await.unwrap();
    };
    tokio::join!(waiting.gather(&mut batch, BATCH_ENOUGH, true, never), push_after_settlements);
    assert_eq!(batch.len(), 4);
}

#[tokio::test]
async fn the_log_is_written_back_before_it_grows_large() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    let log = || std::fs::metadata(folder.path().join("wxrelay.db-wal")).unwrap().len();
    // 16 MiB in all.
    for id in 1..=1024 {
        let (command, _answer) = enqueue(id, vec![b'x'; (16 << 10) + usize::try_from(id).unwrap()]);
        writer.commit(vec![command]);
        writer.keep_log_small();
        assert!(log() < 5 << 20, "{} bytes after {id} events", log());
    }
}

#[tokio::test]
async fn a_command_that_fails_does_not_fail_those_it_shares_a_commit_with() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    let (first, first_answer) = enqueue(1, vec![1]);
    let (clash, clash_answer) = enqueue(1, vec![1; 2]);
    let (third, third_answer) = enqueue(3, vec![1; 3]);
    writer.commit(vec![first, clash, third]);
    assert!(matches!(first_answer.await.unwrap(), Ok(Enqueued::Fresh)));
    assert!(matches!(clash_answer.await.unwrap(), Err(Error::Engine(_))), "an id given twice");
    assert!(matches!(third_answer.await.unwrap(), Ok(Enqueued::Fresh)));
}

#[tokio::test]
async fn a_full_disk_refuses_pushes_lets_settlements_through_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    writer.commit(vec![enqueue(1, vec![1]).0]);
    let pages = writer.store.pragma("page_count").unwrap();
    let limit = |writer: &Writer, pages| writer.store.pragma(&format!("max_page_count = {pages}")).unwrap();
    limit(&writer, pages);
    let (push, push_answer) = enqueue(2, vec![1; 100_000]);
    let (settle, settle_answer) = settle(1);
    writer.commit(vec![push, settle]);
    assert!(matches!(push_answer.await.unwrap(), Err(Error::Full)));
    assert!(matches!(settle_answer.await.unwrap(), Ok(Settled { released: false, reply: None })));
    limit(&writer, 1_000_000);
    let (push, push_answer) = enqueue(2, vec![1; 10]);
    writer.commit(vec![push]);
    assert!(matches!(push_answer.await.unwrap(), Err(Error::Full)), "without measuring the disk");
    writer.probe();
    let (push, push_answer) = enqueue(2, vec![1; 100_000]);
    writer.commit(vec![push]);
    assert!(matches!(push_answer.await.unwrap(), Ok(Enqueued::Fresh)));
}

#[tokio::test]
async fn another_programs_lock_fails_every_command_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    writer.store.connection.busy_timeout(Duration::ZERO).unwrap();
    let shell = rusqlite::Connection::open(folder.path().join("wxrelay.db")).unwrap();
    shell.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (push, push_answer) = enqueue(1, vec![1]);
    let (settle, settle_answer) = settle(1);
    writer.commit(vec![push, settle]);
    assert!(matches!(push_answer.await.unwrap(), Err(Error::Busy)));
    assert!(matches!(settle_answer.await.unwrap(), Err(Error::Busy)));
}

#[tokio::test]
async fn an_event_that_cannot_be_read_back_is_dead_and_does_not_stop_its_target() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    writer.commit(vec![enqueue(1, vec![1]).0, enqueue(2, vec![1; 2]).0]);
    writer.store.connection.execute("UPDATE event SET clear = x'00ff' WHERE id = 1", []).unwrap();
    let leases = writer.lease(&"crm".into(), 10, UnixMillis(1)).unwrap();
    assert_eq!(leases.due.iter().map(|lease| lease.event.id).collect::<Vec<_>>(), [EventId(2)]);
    let inspect = SqliteReader::open(folder.path()).unwrap();
    assert_eq!(inspect.dead(None, 10, None).unwrap()[0].id, EventId(1));
    assert!(inspect.audit().unwrap().is_clean());
}

#[tokio::test]
async fn behind_events_that_cannot_be_read_there_is_more_to_lease() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    writer.commit([1, 2, 3, 4].map(|id: u8| enqueue(id.into(), vec![1; id.into()]).0).into());
    writer.store.connection.execute("UPDATE event SET clear = x'00ff' WHERE id < 4", []).unwrap();
    let leases = writer.lease(&"crm".into(), 1, UnixMillis(1)).unwrap();
    assert!(leases.due.is_empty());
    assert_eq!(leases.next_due, Some(UnixMillis(1)), "the fourth is due and was not read");
}

#[tokio::test]
async fn no_statement_is_planned_anew_for_each_delivery() {
    static PLANNED: AtomicU64 = AtomicU64::new(0);
    let folder = tempfile::tempdir().unwrap();
    let mut writer = writer(folder.path());
    let store_load_settle = |writer: &mut Writer, id: u64| {
        writer.commit(vec![enqueue(id, vec![1; usize::try_from(id).unwrap()]).0]);
        writer.store.load_event(EventId(id), 1).unwrap();
        writer.commit(vec![settle(id).0]);
    };
    store_load_settle(&mut writer, 1);
    // SQLite asks for each column that a statement names while it plans it.
    let count = |asked: rusqlite::hooks::AuthContext<'_>| {
        let reads = matches!(asked.action, rusqlite::hooks::AuthAction::Read { .. });
        PLANNED.fetch_add(u64::from(reads), Ordering::Relaxed);
        rusqlite::hooks::Authorization::Allow
    };
    writer.store.connection.authorizer(Some(count)).unwrap();
    // Setting an authorizer makes SQLite plan every statement again.
    store_load_settle(&mut writer, 2);
    let planned = PLANNED.load(Ordering::Relaxed);
    assert!(planned > 0);
    store_load_settle(&mut writer, 3);
    assert_eq!(PLANNED.load(Ordering::Relaxed), planned);
}
