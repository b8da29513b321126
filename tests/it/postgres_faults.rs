//! Faults of PostgreSQL while the relay runs: pushes are refused with 503 for as long, readiness and `check --online` say why,
//! and then the same process accepts them again. Nothing that was answered is missing, nothing that was refused is doubled.

use std::fs;

use crate::support::eventually;
use crate::support::postgres::{self, PASSWORD};
use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::{WeChat, event};

/// A relay with an event that was delivered before the fault.
struct Scene {
    wechat: WeChat,
    crm: Target,
    relay: Relay,
    /// How many pushes were answered 200.
    accepted: usize,
}

impl Scene {
    async fn start(url: &str, lines: &str) -> Self {
        let (wechat, crm) = (WeChat::secure(), Target::start().await);
        let setup = Setup::new(wechat.account() + &crm.config("crm", "")).postgres(url).queue(lines);
        let relay = setup.start().await;
        relay.accept_in_time(&wechat, &event("oOne", "CLICK", "before")).await;
        crm.wait_for(1).await;
        Self { wechat, crm, relay, accepted: 1 }
    }

    /// The fault begins: one push is refused. Those before it may find a connection that is not ended yet.
    async fn is_refused(&mut self) -> String {
        for number in 0..20 {
            let push = event("oOne", "CLICK", &format!("meanwhile-{number}"));
            match self.wechat.push(&push).send(&self.relay.push).await.status {
                200 => self.accepted += 1,
                status => {
                    assert_eq!(status, 503);
                    return push;
                }
            }
        }
        panic!("pushes are accepted");
    }

    /// While the fault lasts, readiness names PostgreSQL, and the command that trouble.md names says what it is.
    async fn is_said(&self, problem: &str, remedy: &str) {
        let online = self.relay.run(&["check", "--online"]).await;
        assert_eq!(online.code, Some(1), "{online:?}");
        assert!(online.stdout.contains(problem) && online.stdout.contains(remedy), "{online:?}");
        eventually("store-away", async || (self.relay.get("/readyz").await.text() == "store-away").then_some(())).await;
        assert_eq!(self.relay.get("/livez").await.status, 200);
    }

    /// The fault is over: WeChat's next try of the refused push is accepted, and all are delivered once.
    async fn recovers(mut self, refused: &str) {
        self.relay.accept_in_time(&self.wechat, refused).await;
        self.accepted += 1;
        eventually("ready again", async || (self.relay.get("/readyz").await.status == 200).then_some(())).await;
        let audit = self.relay.audited("delivered", self.accepted as u64).await;
        assert_eq!(audit["events"], self.accepted, "{audit}");
        assert_eq!(self.crm.deliveries().len(), self.accepted);
        let lines = self.relay.lines();
        assert!(!lines.iter().any(|line| line.contains(PASSWORD)), "{lines:?}");
        self.relay.stop().await;
    }
}

#[tokio::test]
async fn a_password_that_was_rotated_is_read_from_its_file_without_a_restart() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("password");
    fs::write(&file, PASSWORD).expect("it can be written");
    let url = database.url().replace(&format!(":{PASSWORD}"), "");
    let mut scene = Scene::start(&url, &format!("password = {{ file = \"{}\" }}", file.display())).await;

    database.sql(&format!("ALTER ROLE {} PASSWORD 'hunter3'", database.role));
    database.end_sessions();
    let refused = scene.is_refused().await;
    scene.is_said("refused the user or the password", "correct queue.password").await;
    fs::write(&file, "hunter3\n").expect("it can be written");
    scene.recovers(&refused).await;
}

#[tokio::test]
async fn while_postgresql_has_no_connection_free_pushes_are_refused_and_then_accepted() {
    let Some(cluster) = postgres::shared() else { return };
    let database = cluster.database();
    let mut scene = Scene::start(&database.url(), "").await;

    database.sql(&format!("ALTER ROLE {} CONNECTION LIMIT 0", database.role));
    database.end_sessions();
    let refused = scene.is_refused().await;
    scene.is_said("no connection free", "raise max_connections").await;
    database.sql(&format!("ALTER ROLE {} CONNECTION LIMIT -1", database.role));
    scene.recovers(&refused).await;
}

#[tokio::test]
async fn a_server_that_becomes_read_only_is_left_and_used_again_when_it_accepts_writes() {
    let Some(cluster) = postgres::own("") else { return };
    let database = cluster.database();
    let mut scene = Scene::start(&database.url(), "").await;

    // Its sessions live on, as those of a primary that was demoted by its operator.
    cluster.set("default_transaction_read_only", Some("on"));
    let refused = scene.is_refused().await;
    scene.is_said("accepts no writes", "name the primary").await;
    let reset = "BEGIN READ WRITE; COMMIT; SET default_transaction_read_only = off; \
                 ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()";
    cluster.sql("postgres", reset);
    scene.recovers(&refused).await;
}
