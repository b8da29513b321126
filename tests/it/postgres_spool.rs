//! The spool: while PostgreSQL is away, pushes are answered and stored on the disk of this machine; then they are stored in
//! PostgreSQL and delivered, each once and in order.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::support::eventually;
use crate::support::postgres::{self, Cluster, Database};
use crate::support::relay::{Relay, Setup};
use crate::support::target::{Delivery, Target};
use crate::support::wechat::{WeChat, event, text};

const IN_ORDER: &str = "order = \"per_user\"\nretry = [\"50ms\", \"50ms\"]";
/// With how a loaded machine adds to the 2 s that a push waits for PostgreSQL.
const ANSWERED_WITHIN: Duration = Duration::from_millis(3500);
/// Far below the 2 s that the first one waits.
const AT_ONCE: Duration = Duration::from_millis(1500);

/// A relay with a spool, a target that keeps order, and a server of its own.
struct Scene<'a> {
    wechat: WeChat,
    crm: Target,
    database: Database<'a>,
    folder: tempfile::TempDir,
    relay: Relay,
    /// What was pushed, by its content: the same content is a retry.
    pushed: Mutex<HashMap<String, String>>,
}

impl<'a> Scene<'a> {
    async fn start(cluster: &'a Cluster, lines: &str) -> Self {
        let (wechat, crm, database) = (WeChat::secure(), Target::start().await, cluster.database());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let relay = setup(&wechat, &crm, &database, folder.path(), lines).start().await;
        Self { wechat, crm, database, folder, relay, pushed: Mutex::default() }
    }

    /// Pushes a text; the answer must be 200. Returns how long it took.
    async fn accept(&self, openid: &str, content: &str) -> Duration {
        let clear = self.clear(openid, content);
        let began = Instant::now();
        self.relay.accept(&self.wechat, &clear).await;
        began.elapsed()
    }

    /// The text of a push.
    fn clear(&self, openid: &str, content: &str) -> String {
        let mut pushed = self.pushed.lock().expect("no test panicked with it");
        pushed.entry(content.to_owned()).or_insert_with(|| text(openid, content)).clone()
    }

    async fn spooled(&self) -> f64 {
        self.relay.metric("wxrelay_spool_events", &[]).await
    }

    /// The spool has been stored in PostgreSQL; all is delivered once, each user's texts in order.
    async fn ends(&mut self, events: usize) {
        eventually("an empty spool", async || (self.spooled().await == 0.0).then_some(())).await;
        let audit = self.relay.audited("delivered", events as u64).await;
        assert_eq!(audit["events"], events, "{audit}");
        let delivered = contents(&self.crm.deliveries());
        assert_eq!(delivered.len(), events, "each once: {delivered:?}");
        for (place, content) in delivered.iter().enumerate() {
            let user = &content[..1];
            let earlier = delivered[..place].iter().rfind(|earlier| earlier.starts_with(user));
            assert!(earlier.is_none_or(|earlier| earlier < content), "out of order: {delivered:?}");
        }
        assert_eq!(self.relay.get("/readyz/direct").await.text(), "ready");
    }
}

fn setup(wechat: &WeChat, crm: &Target, database: &Database<'_>, folder: &Path, lines: &str) -> Setup {
    let spool = format!("spool = \"{}\"\n{lines}", folder.join("spool").display());
    Setup::new(wechat.account() + &crm.config("crm", IN_ORDER)).postgres(&database.url()).queue(&spool)
}

fn contents(deliveries: &[Delivery]) -> Vec<String> {
    let content = |delivery: &Delivery| delivery.json()["message"]["Content"].as_str().expect("a text").to_owned();
    deliveries.iter().map(content).collect()
}

#[tokio::test]
async fn while_postgresql_is_away_pushes_are_answered_and_delivered_once_in_order_when_it_is_back() {
    let Some(cluster) = postgres::own("") else { return };
    let mut scene = Scene::start(&cluster, "").await;
    scene.accept("o_a", "a01").await;
    // Settled too: else it waits for the takeover of what the killed relay held.
    scene.relay.audited("delivered", 1).await;

    cluster.stop("immediate");
    let first = scene.accept("o_a", "a02").await;
    assert!(first < ANSWERED_WITHIN, "{first:?}");
    for number in 3..13 {
        let took = scene.accept("o_a", &format!("a{number:02}")).await;
        let other = scene.accept("o_b", &format!("b{number:02}")).await;
        assert!(took < AT_ONCE && other < AT_ONCE, "{took:?} {other:?}");
    }
    // WeChat's retry of what is spooled, and of what was stored before.
    scene.accept("o_a", "a05").await;
    scene.accept("o_a", "a01").await;
    assert_eq!(scene.crm.deliveries().len(), 1, "nothing is delivered from a spool");
    eventually("store-away", async || (scene.relay.get("/readyz/direct").await.text() == "store-away").then_some(()))
        .await;
    assert_eq!(scene.relay.get("/readyz").await.text(), "ready");
    assert_eq!(scene.spooled().await, 22.0, "21 events, and one that PostgreSQL knows");
    assert_eq!(scene.relay.metric("wxrelay_spooled_total", &[]).await, 22.0);

    cluster.restart();
    // While it is drained and after.
    scene.accept("o_a", "a06").await;
    scene.accept("o_a", "a13").await;
    scene.ends(23).await;
    scene.accept("o_a", "a07").await;
    scene.accept("o_a", "a14").await;
    scene.ends(24).await;
    scene.relay.stop().await;
}

#[tokio::test]
async fn a_spool_outlives_kill_9_and_is_stored_by_the_next_start_also_without_postgresql() {
    let Some(cluster) = postgres::own("") else { return };
    let mut scene = Scene::start(&cluster, "").await;
    scene.accept("o_a", "a01").await;
    // Settled too: else it waits for the takeover of what the killed relay held.
    scene.relay.audited("delivered", 1).await;
    cluster.stop("immediate");
    scene.accept("o_a", "a02").await;
    scene.accept("o_a", "a03").await;
    scene.relay.kill().await;

    // PostgreSQL is still away: the relay starts all the same.
    scene.relay.restart().await;
    let took = scene.accept("o_a", "a04").await;
    assert!(took < AT_ONCE, "{took:?}");
    scene.accept("o_a", "a03").await;
    assert_eq!(scene.spooled().await, 3.0);
    assert_eq!(scene.relay.get("/readyz").await.text(), "ready");
    assert_eq!(scene.relay.get("/readyz/direct").await.text(), "store-away");
    scene.relay.kill().await;

    cluster.restart();
    scene.relay.restart().await;
    let drains = |line: &Value| line["message"] == "spooled events go to postgresql as soon as it can be used";
    let line = scene.relay.log("the spool's end", drains).await;
    assert_eq!((&line["events"], &line["targets_in_order"]), (&3.into(), &1.into()), "not before the order is known");
    scene.accept("o_a", "a05").await;
    scene.ends(5).await;
    let unordered = scene.database.sql("SELECT count(*) FROM wxrelay.delivery WHERE usr IS NULL");
    assert_eq!(unordered, "0", "stored before the order was known");

    // Started without it, and it comes back while the relay runs.
    cluster.stop("immediate");
    scene.relay.kill().await;
    scene.relay.restart().await;
    scene.accept("o_a", "a06").await;
    cluster.restart();
    scene.accept("o_a", "a07").await;
    scene.ends(7).await;
    scene.relay.stop().await;
}

#[tokio::test]
async fn a_target_that_is_paused_stays_so_where_the_relay_starts_without_postgresql() {
    let Some(cluster) = postgres::own("") else { return };
    let mut scene = Scene::start(&cluster, "").await;
    let paused = scene.relay.run(&["targets", "pause", "crm"]).await;
    assert_eq!(paused.code, Some(0), "{paused:?}");
    cluster.stop("immediate");
    scene.relay.kill().await;
    scene.relay.restart().await;
    scene.accept("o_a", "a01").await;
    cluster.restart();
    eventually("an empty spool", async || (scene.spooled().await == 0.0).then_some(())).await;
    eventually("the pause", async || {
        (scene.relay.metric("wxrelay_target_paused", &[("target", "crm")]).await == 1.0).then_some(())
    })
    .await;
    assert_eq!(scene.relay.audit().await["pending"], 1);
    assert!(scene.crm.deliveries().is_empty());
    scene.relay.run(&["targets", "resume", "crm"]).await;
    scene.ends(1).await;
}

#[tokio::test]
async fn a_spool_that_is_full_refuses_pushes_with_503() {
    let Some(cluster) = postgres::own("") else { return };
    let mut scene = Scene::start(&cluster, "spool_size = \"16MiB\"").await;
    cluster.stop("immediate");
    let long = "x".repeat(45_000);
    let mut accepted = 0;
    let refused = loop {
        let push = event("o_a", "CLICK", &format!("{accepted}-{long}"));
        match scene.wechat.push(&push).send(&scene.relay.push).await.status {
            200 => accepted += 1,
            status => break status,
        }
        assert!(accepted < 1000, "there is always space for one more");
    };
    assert_eq!(refused, 503);
    assert!(accepted > 3, "{accepted}");
    eventually("not ready", async || (scene.relay.get("/readyz").await.text() == "queue-full").then_some(())).await;
    cluster.restart();
    eventually("an empty spool", async || (scene.spooled().await == 0.0).then_some(())).await;
    scene.relay.audited("delivered", accepted).await;
    eventually("ready", async || (scene.relay.get("/readyz").await.status == 200).then_some(())).await;
    scene.relay.stop().await;
}

#[tokio::test]
async fn a_push_that_two_replicas_have_spooled_is_one_event() {
    let Some(cluster) = postgres::own("") else { return };
    let mut scene = Scene::start(&cluster, "").await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = setup(&scene.wechat, &scene.crm, &scene.database, folder.path(), "replica = \"other\"");
    let mut other = other.start().await;
    cluster.stop("immediate");
    for content in ["a01", "a02", "a03"] {
        scene.accept("o_a", content).await;
        other.accept(&scene.wechat, &scene.clear("o_a", content)).await;
    }
    assert_eq!(scene.spooled().await + other.metric("wxrelay_spool_events", &[]).await, 6.0);
    cluster.restart();
    let empty = async || (other.metric("wxrelay_spool_events", &[]).await == 0.0).then_some(());
    eventually("an empty spool of the other", empty).await;
    scene.ends(3).await;
    let audit = scene.relay.audit().await;
    assert_eq!(audit["spools"], serde_json::json!({ "events": 0, "unseen": ["other"] }), "{audit}");
    other.stop().await;
    scene.relay.stop().await;
    assert!(scene.folder.path().join("spool").exists());
}
