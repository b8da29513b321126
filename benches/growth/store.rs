//! Stores of earlier events: as the relay leaves them, but written in minutes, not hours.
//!
//! The relay itself makes the schema. The rows are then written straight into its file: ids that grow with time,
//! content keys that begin with CreateTime, one ended delivery each, one attempt, and the matching ledger. All were
//! received within the last day, so retention deletes none of them. `wxrelay audit` must find the store clean.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, params};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::Instant;
use wxrelay::clock::UnixMillis;

use super::axis::Axis;
use super::peers::Peers;
use super::support::figures::mebibytes;
use super::support::relay::{Relay, audit};

/// Enough capacity, and nothing is deleted.
pub(crate) const QUEUE: &str = "max_size = \"200GiB\"\nretention = \"30d\"\n";

/// Events per transaction.
const STEP: u64 = 200_000;
/// The age of the oldest event.
const SPAN: Duration = Duration::from_secs(86_400);

/// A folder with a store of this many events; empty for none. Prints the time, if asked.
pub(crate) async fn made(events: u64, aloud: bool) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    if events == 0 {
        return folder;
    }
    let config = Peers::new(Axis::Events, 0).await.config;
    Relay::start(folder.path(), QUEUE, &config).await.end(Signal::TERM).await;
    let (begun, file) = (Instant::now(), folder.path().join("queue/wxrelay.db"));
    fill(&file, events).expect("the store can be written");
    let (filled, bytes) = (begun.elapsed(), file.metadata().expect("the store is there").len());
    let (clean, report) = audit(folder.path());
    assert!(clean, "{report}");
    if aloud {
        let audited = begun.elapsed() - filled;
        println!(
            "  {events} events written in {:.0} s, {:.0} MiB; audit clean after {:.0} s",
            filled.as_secs_f64(),
            mebibytes(bytes),
            audited.as_secs_f64(),
        );
    }
    folder
}

fn fill(file: &Path, events: u64) -> rusqlite::Result<()> {
    let mut store = Connection::open(file)?;
    // Nothing here must survive a crash; the result is flushed below.
    store.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -262144")?;
    store.execute("INSERT INTO target (name) VALUES ('app0')", [])?;
    let target = store.last_insert_rowid();
    let span = i64::try_from(SPAN.as_millis()).expect("a day");
    let first = UnixMillis::now().0 - span;
    for begin in (0..events).step_by(usize::try_from(STEP).expect("a small number")) {
        let step = store.transaction()?;
        let end = (begin + STEP).min(events);
        let [begin, end, events] = [begin, end, events].map(u64::cast_signed);
        step.prepare_cached(EVENTS)?.execute(params![begin, end, first, span, events])?;
        let ids = [begin, end].map(|number| (first + number * span / events) << 20);
        step.prepare_cached(KNOWN)?.execute(ids)?;
        step.prepare_cached(DELIVERIES)?.execute(params![target, ids[0], ids[1]])?;
        step.prepare_cached(ATTEMPTS)?.execute(params![target, ids[0], ids[1]])?;
        step.commit()?;
    }
    store.execute("UPDATE known_until SET event = (SELECT max(id) FROM event)", [])?;
    // Events, accepted deliveries, delivered ones.
    for (number, state) in [(0, 0), (0, 1), (target, 1)] {
        store.execute("INSERT INTO tally VALUES (?1, ?2, ?3)", params![number, state, events.cast_signed()])?;
    }
    store.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    store.close().map_err(|(_, error)| error)?;
    // Otherwise the kernel would write it back while the relay is measured.
    File::open(file).and_then(|file| file.sync_all()).expect("the store can be flushed");
    Ok(())
}

/// In plaintext mode the text is stored once; with its row that makes some 600 bytes an event.
const EVENTS: &str = "
INSERT INTO event (id, content_key, targets, mode, received_at, account, app_id, msg_type, event, event_key, from_user,
                   query, body)
WITH RECURSIVE number (n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < ?2),
     moment (n, at) AS (SELECT n, ?3 + n * ?4 / ?5 FROM number)
SELECT (at << 20) | (n & 1048575), unhex(printf('%016x', at / 1000) || hex(randomblob(16))), 1, 0, at, 'shop',
       'wxb11529c136998cb6', 'event', 'SCAN', printf('login_%d', n), printf('oBench%022d', n),
       printf('signature=%s&timestamp=%d&nonce=%d&openid=oBench%022d', lower(hex(randomblob(20))), at / 1000, n, n),
       CAST(printf('<xml><ToUserName><![CDATA[gh_0a1b2c3d4e5f]]></ToUserName><FromUserName><![CDATA[oBench%022d]]>'
         || '</FromUserName><CreateTime>%d</CreateTime><MsgType><![CDATA[event]]></MsgType><Event><![CDATA[SCAN]]>'
         || '</Event><EventKey><![CDATA[login_%d]]></EventKey><Ticket><![CDATA[%s]]></Ticket></xml>',
         n, at / 1000, n, hex(randomblob(20))) AS BLOB)
  FROM moment";

const KNOWN: &str = "
INSERT INTO known SELECT content_key, id FROM event WHERE id >= ?1 AND id < ?2 ORDER BY content_key";

const DELIVERIES: &str = "
INSERT INTO delivery (event, target, state, attempts, failures, due, ended_at)
SELECT id, ?1, 1, 1, 0, received_at, received_at + 5 FROM event WHERE id >= ?2 AND id < ?3";

const ATTEMPTS: &str = "
INSERT INTO attempt (event, target, number, at, duration_us, status)
SELECT id, ?1, 1, received_at + 1, 4000, 200 FROM event WHERE id >= ?2 AND id < ?3";
