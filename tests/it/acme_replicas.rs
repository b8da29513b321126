//! Certificates by ACME of replicas on one PostgreSQL: one orders, any of them answers the authority, all serve it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;

use crate::acme::{acme, failure, leaf, pushes};
use crate::support::eventually;
use crate::support::pebble::{Pebble, PebbleSetup};
use crate::support::postgres::{self, Database};
use crate::support::program::is_missing;
use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::WeChat;

const ORDERS: &str = "wxrelay_acme_orders_total";
/// 90 days.
const LONG: u32 = 90 * 86_400;

fn setup(database: &Database<'_>, name: &str, wechat: &WeChat, crm: &Target, tls: &str) -> Setup {
    let key = STANDARD.encode([1; 32]);
    Setup::new(wechat.account() + &crm.config("crm", ""))
        .server(&format!("tls = {tls}"))
        .postgres(&database.url())
        .queue(&format!("replica = \"{name}\"\nencryption_keys = [\"{key}\"]"))
}

async fn issued(relay: &Relay) {
    relay.log("the certificate", |line| line["message"] == "certificate issued").await;
}

/// Two replicas, whose first order has failed as there was no authority; now there is one.
struct Scene {
    database: Database<'static>,
    wechat: WeChat,
    _crm: Target,
    _place: PebbleSetup,
    first: Relay,
    /// The only one that the authority reaches.
    second: Relay,
    pebble: Pebble,
}

impl Scene {
    /// `None` where a program is not installed.
    async fn start() -> Option<Self> {
        let cluster = postgres::shared()?;
        if is_missing("pebble") {
            return None;
        }
        let database = cluster.database();
        let (wechat, crm, place) = (WeChat::secure(), Target::start().await, PebbleSetup::new());
        let tls = acme(&place);
        let first = setup(&database, "a", &wechat, &crm, &tls).start().await;
        first.log("the failure", failure).await;
        let second = setup(&database, "b", &wechat, &crm, &tls).start().await;
        eventually("two replicas", async || (first.metric("wxrelay_replicas", &[]).await == 2.0).then_some(())).await;
        let pebble = place.start(&second.push, LONG).await;
        Some(Self { database, wechat, _crm: crm, _place: place, first, second, pebble })
    }
}

#[tokio::test]
async fn one_replica_orders_another_one_answers_the_authority_and_all_serve_the_certificate() {
    let Some(scene) = Scene::start().await else { return };
    let Scene { database, wechat, mut first, mut second, pebble, _crm, _place } = scene;
    first.signal(Signal::HUP);
    issued(&first).await;
    let served = pushes(&first, &wechat, &pebble.root).await;
    let same = async || (leaf(&second, &pebble.root).await? == served).then_some(());
    eventually("the second one serves it too", same).await;
    pushes(&second, &wechat, &pebble.root).await;
    assert_eq!(first.metric(ORDERS, &[("result", "issued")]).await, 1.0);
    assert_eq!(second.metric(ORDERS, &[]).await, 0.0, "one orders at a time");
    assert!(second.metric("wxrelay_tls_expiry_timestamp_seconds", &[]).await > 0.0);
    let sealed = "SELECT count(*), count(*) FILTER (WHERE position('PRIVATE' IN encode(value, 'escape')) > 0 \
                  OR position('key_pkcs8' IN encode(value, 'escape')) > 0) FROM wxrelay.kept";
    assert_eq!(database.sql(sealed), "2|0", "the certificate and the account");
    assert_eq!(database.sql("SELECT count(*) FROM wxrelay.challenge"), "0", "nothing is ordered now");

    let root = pebble.root.clone();
    drop(pebble);
    for relay in [&mut first, &mut second] {
        relay.stop().await;
        relay.restart().await;
        assert_eq!(pushes(relay, &wechat, &root).await, served, "from the first connection on");
        assert_eq!(relay.metric(ORDERS, &[]).await, 0.0, "and nothing is ordered");
    }
}

#[tokio::test]
async fn when_the_replica_that_orders_is_killed_another_one_orders() {
    let Some(mut scene) = Scene::start().await else { return };
    scene.first.kill().await;
    issued(&scene.second).await;
    pushes(&scene.second, &scene.wechat, &scene.pebble.root).await;
}

#[tokio::test]
async fn a_shared_certificate_needs_a_key_that_seals_it() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let (wechat, crm, place) = (WeChat::secure(), Target::start().await, PebbleSetup::new());
    let mut relay = setup(&database, "a", &wechat, &crm, &acme(&place)).start().await;
    let doctor = relay.run(&["check"]).await;
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    let body = wechat.account() + &crm.config("crm", "");
    let tls = format!("tls = {}", acme(&place));
    relay.configure_all(Setup::new(body).server(&tls).postgres(&database.url()));
    let refused = relay.run(&["check"]).await;
    assert!(refused.code == Some(78) && refused.stderr.contains("server.tls.acme"), "{refused:?}");
    assert!(refused.stderr.contains("set queue.encryption_keys"), "{refused:?}");
}
