//! The store in PostgreSQL: connection, schema, durability, standby, commits, clock, and what keeps the server from
//! cleaning up.
//!
//! The only writes are empty messages in the server's log, which time a commit.

use std::fmt::Display;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::time::{Instant, timeout};

use super::machine;
use super::machine::judge_times;
use super::report::{CheckResult, CheckResults, DoctorCheck};
use crate::cli::database::{Database, NO_STANDBY, NO_STANDBY_REMEDY, version};
use crate::clock::UnixMillis;
use crate::queue;
use crate::queue::Inspect;
use crate::queue::postgres::schema::{Found, VERSION};
use crate::queue::postgres::{Failure, Session, Settings, Standby, find_oldest_xmin};

const COMMITS: usize = 20;
/// The limit of all commits together: a standby that hangs lets each wait for ever.
const COMMIT_LIMIT: Duration = Duration::from_secs(10);
/// The limit of one question.
const LIMIT: Duration = Duration::from_secs(5);
/// The replicas' clocks may differ from the server's by as much.
const MOST_SKEW: u64 = 1000;
/// A snapshot that is held longer keeps dead rows.
const LONG_HELD: Duration = Duration::from_secs(600);

/// A transaction that changes no table, and whose commit is confirmed as that of a push is.
const EMPTY_COMMIT: &str = "SELECT pg_logical_emit_message(true, 'wxrelay', 'doctor')::text";
const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8";
/// A role that is no member of pg_monitor sees the names only.
const STANDBYS: &str =
    "SELECT coalesce(application_name, '?'), coalesce(sync_state, 'not visible') FROM pg_stat_replication ORDER BY 1";

/// All checks of the database; after the connection failed, only that.
pub(super) async fn check(settings: &Settings, queue: &queue::Settings) -> CheckResults {
    let mut findings = CheckResults::default();
    if let Some(spool) = &settings.spool {
        findings.lines.extend(machine::spool(spool, settings.spool_size).await);
    }
    let addresses: Vec<_> = settings.server.addresses.iter().map(ToString::to_string).collect();
    let check = DoctorCheck::new("postgres", addresses.join(", "));
    let database = match Database::open(settings).await {
        Ok(database) => database,
        Err(failure) => {
            findings.lines.push(check.failed(&failure, failure.remedy().unwrap_or_default()));
            return findings;
        }
    };
    let session = &database.session;
    let text = format!(
        "PostgreSQL {} at {}, connected in {} ms",
        version(session),
        session.address(),
        database.took.as_millis()
    );
    findings.lines.push(check.ok(text));
    findings.lines.push(schema(settings, database.found));
    findings.lines.push(durability(session));
    findings.lines.push(standby(session, settings).await);
    findings.lines.push(commits(session).await);
    findings.lines.push(clock(session).await);
    findings.lines.push(xmin(session).await);
    findings.lines.push(replicas(settings, queue, database.found).await);
    if database.found == Found::Tables {
        findings.lines.push(contents(settings, queue).await);
        findings.lines.push(machine::encryption(&settings.schema, queue, "database").await);
    }
    findings
}

fn schema(settings: &Settings, found: Found) -> CheckResult {
    let check = DoctorCheck::new("schema", &settings.schema);
    match found {
        Found::Nothing => check.ok("no tables yet: the relay creates them at its first start, and this role may"),
        Found::Tables => check.ok(format!("version {VERSION}, and this role may use the tables")),
    }
}

fn durability(session: &Session) -> CheckResult {
    let check = DoctorCheck::new("durability", "");
    match session.facts().weakness {
        None => check.ok("fsync, full_page_writes and synchronous_commit are on"),
        Some(setting) => check.warning(
            format!(
                "{setting} is off: a push that was answered can be lost; queue.accept_weak_durability accepts that"
            ),
            format!("set {setting} = on in PostgreSQL, and remove queue.accept_weak_durability"),
        ),
    }
}

async fn standby(session: &Session, settings: &Settings) -> CheckResult {
    let check = DoctorCheck::new("standby", "");
    if !session.facts().has_standby {
        return match settings.standby {
            Standby::None => check.ok("none, which queue.standby = \"none\" accepts"),
            Standby::Warn => check.warning(NO_STANDBY, NO_STANDBY_REMEDY),
            Standby::Required => check.failed(NO_STANDBY, NO_STANDBY_REMEDY),
        };
    }
    let rows = match ask(session.query_once(STANDBYS, &[])).await {
        Ok(rows) => rows,
        Err(error) => return unknown(&check, error),
    };
    let found: Vec<(String, String)> =
        rows.iter().filter_map(|row| Some((row.try_get(0).ok()?, row.try_get(1).ok()?))).collect();
    let listed = found.iter().map(|(name, state)| format!("{name} ({state})")).collect::<Vec<_>>().join(", ");
    let is_hidden = found.iter().any(|(_, state)| state == "not visible");
    if found.iter().any(|(_, state)| state == "sync" || state == "quorum") {
        check.ok(format!("commits wait for it: {listed}"))
    } else if is_hidden {
        check.ok(format!("commits wait for one; connected: {listed}; GRANT pg_monitor to the role shows their states"))
    } else {
        let listed = if listed.is_empty() { "none".to_owned() } else { listed };
        let text = format!("synchronous_standby_names is set, and no synchronous standby is connected ({listed})");
        check.failed(text, "start the standby, or change synchronous_standby_names: until then every commit waits")
    }
}

/// The time of commits that are confirmed as those of pushes are.
async fn commits(session: &Session) -> CheckResult {
    let check = DoctorCheck::new("commit", "");
    let mut times = Vec::new();
    let timed = async {
        for _ in 0..COMMITS {
            let started = Instant::now();
            session.query(EMPTY_COMMIT, &[]).await?;
            times.push(started.elapsed());
        }
        Ok::<(), Failure>(())
    };
    let remedy = "check the disk of PostgreSQL and the synchronous standby, which commits wait for";
    match timeout(COMMIT_LIMIT, timed).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return check.failed(&error, error.remedy().unwrap_or(remedy)),
        Err(_) => {
            let text = format!("{} of {COMMITS} commits within {} s", times.len(), COMMIT_LIMIT.as_secs());
            return check.failed(text, remedy);
        }
    }
    times.sort_unstable();
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let text = format!("a commit takes {}, at most {} ({COMMITS} tried)", ms(median), ms(most));
    judge_times(check, [median, most], text, remedy)
}

/// The server's clock compared with ours, to half of the round trip.
async fn clock(session: &Session) -> CheckResult {
    let check = DoctorCheck::new("clock", "PostgreSQL");
    let (before, started) = (UnixMillis::now().0, Instant::now());
    let rows = match ask(session.query_once(CLOCK, &[])).await {
        Ok(rows) => rows,
        Err(error) => return unknown(&check, error),
    };
    let half = i64::try_from(started.elapsed().as_millis() / 2).unwrap_or(i64::MAX);
    let Some(theirs) = rows.first().and_then(|row| row.try_get::<_, i64>(0).ok()) else {
        return unknown(&check, "no answer");
    };
    let apart = theirs - (before + half);
    let text = format!("{} ms {} this machine's", apart.unsigned_abs(), if apart < 0 { "behind" } else { "ahead of" });
    if apart.unsigned_abs() > MOST_SKEW {
        check.warning(text, "synchronise both machines' clocks (NTP): due times and ages are by the relay's clock")
    } else {
        check.ok(text)
    }
}

async fn xmin(session: &Session) -> CheckResult {
    let check = DoctorCheck::new("xmin", "");
    let held = match ask(find_oldest_xmin(session)).await {
        Ok(Some(held)) => held,
        Ok(None) => return check.ok("no snapshot keeps PostgreSQL from removing dead rows"),
        Err(error) => return unknown(&check, error),
    };
    let Some(age) = held.age else {
        return check
            .ok(format!("the oldest snapshot is that of {}; its age is not visible to this role", held.holder));
    };
    let text = format!("the oldest snapshot is that of {}, {} s old", held.holder, age.as_secs());
    if age >= LONG_HELD {
        check.warning(
            text,
            "end it (pg_terminate_backend, ROLLBACK PREPARED, pg_drop_replication_slot): dead rows pile up",
        )
    } else {
        check.ok(text)
    }
}

/// Who else uses the store, and who differs.
async fn replicas(settings: &Settings, queue: &queue::Settings, found: Found) -> CheckResult {
    let check = DoctorCheck::new("replicas", &settings.schema);
    if found == Found::Nothing {
        return check.ok("none yet");
    }
    let read = async { Inspect::open(queue).await?.replicas().await };
    let found = match timeout(LIMIT, read).await {
        Ok(Ok(found)) => found.unwrap_or_default(),
        Ok(Err(error)) => return unknown(&check, error),
        Err(_) => return unknown(&check, "no answer in time"),
    };
    let live: Vec<_> = found.iter().filter(|replica| replica.live).collect();
    let differing: Vec<_> = live.iter().filter(|one| !one.same_config).map(|one| &*one.name).collect();
    let named: Vec<_> = live.iter().map(|one| format!("{} ({})", one.name, one.release)).collect();
    let listed = if named.is_empty() { "none is alive".to_owned() } else { format!("alive: {}", named.join(", ")) };
    if differing.is_empty() {
        check.ok(listed)
    } else {
        let text = format!("{listed}; the configuration differs: {}", differing.join(", "));
        check.warning(text, "write the same accounts, routes, targets and logins on all replicas, and reload each")
    }
}

/// What the store holds.
async fn contents(settings: &Settings, queue: &queue::Settings) -> CheckResult {
    let check = DoctorCheck::new("store", &settings.schema);
    match machine::stats(queue).await {
        Ok(stats) if stats.unaccounted > 0 => check.failed(
            format!("{} deliveries are unaccounted for", stats.unaccounted),
            "keep the store and report what `wxrelay audit` says",
        ),
        Ok(stats) => {
            let limit = queue.size_limit().map_or_else(String::new, |limit| format!(" of {}", ByteSize(limit)));
            check.ok(format!("{} events, {}{limit}", stats.events, ByteSize(stats.bytes)))
        }
        Err(error) => check.failed(&error, error.remedy().unwrap_or_default()),
    }
}

/// Asks within the limit.
async fn ask<T>(question: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(LIMIT, question).await.unwrap_or(Err(Failure::Busy))
}

fn unknown(check: &DoctorCheck, error: impl Display) -> CheckResult {
    check.warning(format!("unknown ({error})"), "run doctor again")
}
