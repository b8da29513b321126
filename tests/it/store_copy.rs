//! `wxrelay store copy`: a store moves to PostgreSQL and back; nothing is lost, delivered twice or decrypted on the way.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rusqlite::{Connection, params};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::command::{Finished, Running, free_address, run, wxrelay};
use crate::support::eventually;
use crate::support::postgres::{self, Database};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, now, text};

const ANSWER: &str = "an answer that a target gave with its 500";
const REPLY: &str = "a reply for one pair of eyes";

fn key(fill: u8) -> String {
    format!("encryption_keys = [\"{}\"]", STANDARD.encode([fill; 32]))
}

/// Runs a copy from one configuration to another.
async fn copy(from: &Path, to: &Path, flags: &[&str]) -> Finished {
    let mut command = wxrelay(["store", "copy", "-c"]);
    command.arg(from).arg("--to").arg(to).args(flags);
    run(command).await
}

/// The report of a copy that must be complete.
async fn complete(from: &Path, to: &Path) -> Value {
    let copied = copy(from, to, &["--json"]).await;
    assert_eq!(copied.code, Some(0), "{copied:?}");
    let report: Value = serde_json::from_str(&copied.stdout).expect("JSON");
    assert_eq!(report["complete"], true, "{report}");
    report
}

/// Keeps the configuration of the moment under another name.
fn keep(relay: &Relay, name: &str) -> PathBuf {
    let path = relay.config().with_file_name(name);
    fs::copy(relay.config(), &path).expect("the configuration");
    path
}

/// A store with every kind of delivery: a bot that replies, a target that refuses, one that is paused and keeps order.
struct Fixture {
    wechat: WeChat,
    bot: Target,
    legacy: Target,
    slow: Target,
}

impl Fixture {
    async fn new() -> Self {
        let reply = format!("{{\"reply\":{{\"msg_type\":\"text\",\"content\":\"{REPLY}\"}}}}");
        let bot = Target::always(Reaction::Answer(Reply::body("application/json", reply))).await;
        let refusal = Reply { status: 500, ..Reply::body("text/plain", ANSWER) };
        let legacy = Target::always(Reaction::Answer(refusal)).await;
        Self { wechat: WeChat::secure(), bot, legacy, slow: Target::start().await }
    }

    fn body(&self) -> String {
        let routes =
            "[[accounts.shop.routes]]\notherwise = true\nto = [\"bot\", \"legacy\", \"slow\"]\nreply = \"bot\"\n";
        let targets = self.bot.config("bot", "") + &self.legacy.config("legacy", "retry = []");
        self.wechat.account() + routes + &targets + &self.slow.config("slow", "order = \"per_user\"")
    }

    fn setup(&self, lines: &str) -> Setup {
        Setup::new(self.body()).queue(lines).admin_at(free_address())
    }

    /// Returns the first text: WeChat would push the very same again.
    async fn fill(&self, relay: &Relay) -> String {
        let first = text("oOne", "first");
        let paused = relay.run(&["targets", "pause", "slow"]).await;
        assert_eq!(paused.code, Some(0), "{paused:?}");
        let answer = relay.accept(&self.wechat, &first).await;
        assert!(self.wechat.open_reply(answer.text()).contains(REPLY), "{answer:?}");
        relay.accept(&self.wechat, &text("oOne", "second")).await;
        relay.accept(&self.wechat, &text("oTwo", "third")).await;
        for (state, count) in [("dead", 3), ("delivered", 3), ("pending", 3)] {
            relay.audited(state, count).await;
        }
        first
    }
}

fn contents(target: &Target) -> Vec<String> {
    let content = |delivery: &Value| delivery["message"]["Content"].as_str().expect("a text").to_owned();
    target.deliveries().iter().map(|delivery| content(&delivery.json())).collect()
}

/// All that may be encrypted of the events, as it is stored.
fn sealed_in_files(store: &Path) -> String {
    let store = Connection::open(store.join("wxrelay.db")).expect("the store");
    let sql = "SELECT group_concat(lower(hex(query) || hex(body) || coalesce(hex(clear), '') || coalesce(hex(reply), '')), ' ') \
               || ' ' || (SELECT group_concat(lower(hex(answer)), ' ') FROM (SELECT answer FROM attempt WHERE answer IS NOT NULL \
               ORDER BY event, target, number)) FROM (SELECT * FROM event ORDER BY id)";
    store.query_row(sql, [], |row| row.get(0)).expect("events")
}

fn sealed_in_postgres(database: &Database<'_>) -> String {
    database.sql(
        "SELECT string_agg(encode(query, 'hex') || encode(body, 'hex') || coalesce(encode(clear, 'hex'), '') \
         || coalesce(encode(reply, 'hex'), ''), ' ' ORDER BY id) || ' ' || (SELECT string_agg(encode(answer, 'hex'), ' ' \
         ORDER BY event, target, number) FROM wxrelay.attempt WHERE answer IS NOT NULL) FROM wxrelay.event",
    )
}

#[tokio::test]
async fn a_store_moves_to_postgresql_and_back_and_goes_on_where_it_was() {
    let Some(cluster) = postgres::shared() else { return };
    let (database, fixture) = (cluster.database(), Fixture::new().await);
    let mut relay = fixture.setup(&key(1)).start().await;
    let clear = fixture.fill(&relay).await;
    let files = keep(&relay, "files.toml");
    relay.configure_all(fixture.setup(&key(1)).postgres(&database.url()));
    let refused = copy(&files, relay.config(), &[]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("a relay uses the store"), "{refused:?}");
    relay.stop().await;
    let in_files = relay_audit(&files).await;

    let dry = copy(&files, relay.config(), &["--dry-run"]).await;
    assert!(dry.stdout.contains("would copy 3 events, 3 of them before the replicas may start"), "{dry:?}");
    assert_eq!(database.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'wxrelay'"), "0");
    let report = complete(&files, relay.config()).await;
    assert_eq!((&report["events"], &report["source"], &report["copy"]), (&3.into(), &in_files, &in_files), "{report}");
    assert_eq!(sealed_in_postgres(&database), sealed_in_files(&relay.store()), "as it was");
    assert_eq!(complete(&files, relay.config()).await["events"], 0, "again");

    relay.restart().await;
    assert_eq!(relay.metric("wxrelay_target_paused", &[("target", "slow")]).await, 1.0);
    let (asked, answer) = (fixture.bot.deliveries().len(), relay.accept(&fixture.wechat, &clear).await);
    assert!(fixture.wechat.open_reply(answer.text()).contains(REPLY), "the same reply: {answer:?}");
    assert_eq!(fixture.bot.deliveries().len(), asked, "a duplicate");
    let dead = relay.run(&["dead", "ls", "--json"]).await;
    assert_eq!(dead.stdout.matches(ANSWER).count(), 3, "its answers can be decrypted: {dead:?}");
    assert_eq!(relay.run(&["targets", "resume", "slow"]).await.code, Some(0));
    relay.audited("delivered", 6).await;
    relay.accept(&fixture.wechat, &text("oOne", "fourth")).await;
    relay.audited("delivered", 8).await;
    let of_one: Vec<_> = contents(&fixture.slow).into_iter().filter(|content| content != "third").collect();
    assert_eq!(of_one, ["first", "second", "fourth"], "in order, each once");

    let postgres = keep(&relay, "postgres.toml");
    let back = relay.config().with_file_name("back");
    relay.configure_all(fixture.setup(&key(1)).queue_at(&back));
    let refused = copy(&postgres, relay.config(), &[]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("replicas are alive"), "{refused:?}");
    relay.stop().await;
    let in_postgres = relay_audit(&postgres).await;
    let report = complete(&postgres, relay.config()).await;
    assert_eq!((&report["source"], &report["copy"]), (&in_postgres, &in_postgres), "{report}");
    assert_eq!(sealed_in_postgres(&database), sealed_in_files(&back), "as it was");
    let again = copy(&postgres, relay.config(), &[]).await;
    assert!(again.code == Some(1) && again.stderr.contains("is not empty"), "{again:?}");

    relay.restart().await;
    assert_eq!(relay_audit(relay.config()).await, in_postgres);
    let answer = relay.accept(&fixture.wechat, &clear).await;
    assert!(fixture.wechat.open_reply(answer.text()).contains(REPLY), "{answer:?}");
    fixture.legacy.then(Reaction::Answer(Reply::status(200)));
    assert_eq!(relay.run(&["dead", "retry", "legacy", "--yes"]).await.code, Some(0));
    relay.audited("delivered", 12).await;
    assert_eq!(fixture.slow.deliveries().len(), 4);
}

async fn relay_audit(config: &Path) -> Value {
    let mut command = wxrelay(["audit", "--json", "-c"]);
    command.arg(config);
    let finished = run(command).await;
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).expect("JSON")
}

/// Adds delivered events to a store that no relay uses, from that moment on.
fn add_delivered(store: &Path, moment: i64, count: u32) {
    let mut store = Connection::open(store.join("wxrelay.db")).expect("the store");
    let change = store.transaction().expect("a transaction");
    let parameters = params![moment, count];
    for sql in [
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?2) \
         INSERT INTO event (id, content_key, targets, mode, received_at, account, app_id, msg_type, event, event_key, \
                            from_user, query, body) \
         SELECT (?1 << 20) + i, CAST(printf('%024d', (?1 << 20) + i) AS BLOB), 1, 0, ?1, 'shop', 'wx0', 'text', '', '', 'oOld', '', \
                CAST('<xml><FromUserName>oOld</FromUserName><MsgType>text</MsgType></xml>' AS BLOB) FROM n",
        "INSERT INTO delivery SELECT id, (SELECT min(no) FROM target), 1, 1, 0, ?1, ?1, NULL FROM event \
         WHERE id >= (?1 << 20) AND id < (?1 << 20) + ?2",
        "INSERT INTO attempt SELECT event, target, 1, ?1, 1000, 200, NULL, NULL FROM delivery \
         WHERE event >= (?1 << 20) AND event < (?1 << 20) + ?2",
        "INSERT INTO tally SELECT 0, 0, ?2 WHERE ?1 > 0 UNION ALL SELECT 0, 1, ?2 WHERE ?1 > 0 UNION ALL \
         SELECT (SELECT min(no) FROM target), 1, ?2 WHERE ?1 > 0 ON CONFLICT DO UPDATE SET count = count + excluded.count",
    ] {
        change.execute(sql, parameters).expect(sql);
    }
    change.commit().expect("a commit");
}

/// Begins a copy, and kills it once that many events are there.
async fn kill_at(from: &Path, to: &Path, database: &Database<'_>, events: u64) {
    let mut command = wxrelay(["store", "copy", "-c"]);
    command.arg(from).arg("--to").arg(to);
    let copying = Running::spawn(command);
    let count = || database.sql("SELECT count(*) FROM wxrelay.event").parse::<u64>().expect("a count");
    let has_table = || database.sql("SELECT to_regclass('wxrelay.event') IS NOT NULL") == "t";
    eventually("some events are copied", async || (has_table() && count() >= events).then_some(())).await;
    copying.signal(Signal::KILL);
    assert_eq!(copying.end().await, None, "it was not through yet");
}

#[tokio::test]
async fn a_copy_that_was_killed_goes_on_in_both_steps_and_the_second_runs_beside_replicas() {
    const MANY: u32 = 12_000;
    let Some(cluster) = postgres::shared() else { return };
    let (database, fixture) = (cluster.database(), Fixture::new().await);
    let mut relay = fixture.setup("").start().await;
    fixture.fill(&relay).await;
    let files = keep(&relay, "files.toml");
    relay.stop().await;
    let moment = now() * 1000;
    add_delivered(&relay.store(), moment - 60_000, MANY);
    add_delivered(&relay.store(), moment - 3 * 86_400_000, MANY);
    relay.configure_all(fixture.setup("").postgres(&database.url()));

    kill_at(&files, relay.config(), &database, 1000).await;
    let early = relay.launch();
    let told =
        early.find("the reason", |line| line.contains("has not come to where it can be used").then_some(())).await;
    assert_eq!((told, early.end().await), ((), Some(78)), "no replica delivers what is half copied");
    let open = copy(&files, relay.config(), &["--only-open"]).await;
    assert!(open.code == Some(0) && open.stderr.contains("the replicas may be started now"), "{open:?}");
    let there = database.sql("SELECT count(*) FROM wxrelay.event");
    assert_eq!(there, (MANY + 3).to_string(), "what is new or not finished");

    relay.restart().await;
    assert_eq!(relay.run(&["targets", "resume", "slow"]).await.code, Some(0));
    kill_at(&files, relay.config(), &database, u64::from(MANY) + 2000).await;
    relay.accept(&fixture.wechat, &event("oOne", "CLICK", "meanwhile")).await;
    let report = complete(&files, relay.config()).await;
    assert_eq!((&report["differences"], &report["source"]["events"]), (&serde_json::json!([]), &(2 * MANY + 3).into()));
    let audit = relay.audited("delivered", u64::from(2 * MANY) + 8).await;
    assert_eq!(audit["events"], 2 * MANY + 4, "each once: {audit}");
    assert_eq!(fixture.slow.deliveries().len(), 4);
    assert_eq!(database.sql("SELECT count(*) FROM wxrelay.attempt WHERE at = 0"), "0");

    // What the old relay would do now makes its store another one.
    relay.stop().await;
    add_delivered(&relay.store(), moment - 30_000, 1);
    let changed = copy(&files, relay.config(), &[]).await;
    assert!(changed.code == Some(1) && changed.stderr.contains("this store has changed since"), "{changed:?}");
}

#[tokio::test]
async fn a_store_is_copied_into_an_empty_place_that_can_read_it_and_nowhere_else() {
    let Some(cluster) = postgres::shared() else { return };
    let (database, fixture) = (cluster.database(), Fixture::new().await);
    let mut relay = fixture.setup(&key(1)).start().await;
    fixture.fill(&relay).await;
    let files = keep(&relay, "files.toml");
    relay.stop().await;
    let other = |name: &str, queue: &str| {
        let path = files.with_file_name(name);
        fs::write(&path, queue).expect("a configuration");
        path
    };
    let at = |name: &str, lines: &str| {
        let url = database.url();
        other(name, &format!("[queue]\ntype = \"postgres\"\nurl = \"{url}\"\ntls = \"off\"\n{lines}"))
    };
    let no_queue = other("no-queue.toml", "[log]\nlevel = \"info\"\n");
    let twin = other("twin.toml", &format!("[queue]\npath = \"{}\"\n{}", relay.store().display(), key(1)));
    let misspelt = other("misspelt.toml", "[queue]\ntype = \"postgres\"\nur = \"postgres://x@y/z\"\n");
    for (to, problem, remedy) in [
        (no_queue, "has no [queue]", "write the [queue] of the other store into it"),
        (twin, "both configurations keep the store in SQLite", "whose [queue] has the other type"),
        (misspelt, "queue.ur", ""),
        (at("no-key.toml", ""), "which queue.encryption_keys of the other configuration lacks", "put that key into it"),
        (
            at("other-key.toml", &key(2)),
            "which queue.encryption_keys of the other configuration lacks",
            "behind the first",
        ),
    ] {
        let refused = copy(&files, &to, &[]).await;
        assert!(refused.code.is_some_and(|code| code != 0), "{}: {refused:?}", to.display());
        assert!(refused.stderr.contains(problem) && refused.stderr.contains(remedy), "{}: {refused:?}", to.display());
    }
    assert_eq!(database.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'wxrelay'"), "0", "nothing was made");

    // A schema that a relay has used, and one with the copy of another store.
    let used = Setup::new(fixture.body()).postgres(&database.url()).queue("schema = \"used\"").start().await;
    let refused = copy(&files, &at("used.toml", &format!("schema = \"used\"\n{}", key(1))), &[]).await;
    assert!(refused.stderr.contains("replicas are alive"), "{refused:?}");
    used.accept(&fixture.wechat, &event("oThree", "CLICK", "one")).await;
    let mut used = used;
    used.stop().await;
    let refused = copy(&files, &at("used.toml", &format!("schema = \"used\"\n{}", key(1))), &[]).await;
    assert!(refused.stderr.contains("schema used is not empty, and no copy of this store"), "{refused:?}");
    let second = Setup::new(fixture.body()).start().await;
    second.accept(&fixture.wechat, &event("oThree", "CLICK", "one")).await;
    second.audited("delivered", 2).await;
    let seconds = keep(&second, "seconds.toml");
    let mut second = second;
    second.stop().await;
    let place = at("place.toml", &key(1));
    complete(&seconds, &place).await;
    let refused = copy(&files, &place, &[]).await;
    assert!(refused.stderr.contains("schema wxrelay holds a copy of another store"), "{refused:?}");
    assert_eq!(database.sql("SELECT count(*) FROM wxrelay.event"), "1");
}
