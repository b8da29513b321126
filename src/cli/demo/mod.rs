//! `wxrelay demo`: the relay's main job as a story, with real sockets and a real store.
//!
//! Each step says what happens, then shows that it did; a step that goes otherwise ends the story with an error.

mod stage;

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use http::StatusCode;
use tokio::time::Instant;

use super::audit;
use super::simulate::{Answer, Kind, Verdict};
use super::sink::Delivery;
use crate::secret::Secret;
use crate::wechat::Credentials;

use stage::{Stage, USER, next};

/// `wxrelay demo`
#[derive(clap::Args)]
pub struct Args {
    /// End after the audit, with exit code 0 if every step went as told
    #[arg(long)]
    once: bool,
}

/// Tells the story; then keeps running, unless `--once`.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut story = Story { stage: Stage::set().await?, step: 0, color: io::stdout().is_terminal() };
    let told = story.tell().await;
    if told.is_ok() && !args.once {
        story.keep_running().await?;
    }
    story.stage.app.stop().await;
    told.map(|()| ExitCode::SUCCESS)
}

struct Story {
    stage: Stage,
    step: u32,
    color: bool,
}

impl Story {
    async fn tell(&mut self) -> anyhow::Result<()> {
        self.scene()?;
        self.verification().await?;
        self.subscribe().await?;
        self.scan().await?;
        self.text().await?;
        self.click().await?;
        self.retry().await?;
        self.forgery().await?;
        self.outage().await?;
        self.ledger().await
    }

    fn scene(&self) -> anyhow::Result<()> {
        let (login, crm, stats) = (self.stage.login.address, self.stage.crm.address, self.stage.stats.address);
        self.say(&format!(
            "wxrelay {}: one server URL, many targets; everything on loopback, in {}\n\n  \
             WeChat (stand-in)\n    │\n    ▼\n  \
             relay      {}\n    \
             ├─► login  identity provider (stand-in for Authing)  http://{login}\n    \
             ├─► crm    handler (stand-in)                        http://{crm}\n    \
             └─► stats  handler (stand-in)                        http://{stats}",
            env!("CARGO_PKG_VERSION"),
            self.stage.folder.path().display(),
            self.stage.url,
        ))
    }

    async fn verification(&mut self) -> anyhow::Result<()> {
        self.begin("URL verification: WeChat's console asks whether the server is ours")?;
        let answer = self.stage.wechat.verify(&self.stage.url).await?;
        ensure!(matches!(answer.verdict, Verdict::Verified), "not verified: {:?}", answer.verdict);
        self.shown(&format!("the signature is checked and the echostr comes back, {}", took(&answer)))
    }

    async fn subscribe(&mut self) -> anyhow::Result<()> {
        self.begin("subscribe: a user scans the login QR code and follows the account (scene login_7)")?;
        let kind = Kind::Subscribe { scene: Some("login_7".to_owned()) };
        let (answer, _) = self.stage.push(&kind).await?;
        let reply = replied(&answer)?;
        ensure!(reply.contains("Welcome!"), "another reply: {reply}");
        let delivery = next(&mut self.stage.login).await?;
        self.shown(&format!("WeChat got the sealed fixed reply \"Welcome!\", {}", took(&answer)))?;
        self.delivered("login", &delivery)
    }

    async fn scan(&mut self) -> anyhow::Result<()> {
        self.begin("SCAN: a follower scans the login QR code; it goes to the identity provider, to nobody else")?;
        let (answer, _) = self.stage.push(&Kind::Scan { scene: "login_8".to_owned() }).await?;
        received(&answer)?;
        let delivery = next(&mut self.stage.login).await?;
        ensure!(delivery.path == "/connections/social/demo/0123456789abcdef01234567/events", "path {}", delivery.path);
        ensure!(delivery.body.starts_with(br#"{"xml":{"tousername":["#), "not what Authing's sample sends");
        self.delivered("login", &delivery)
    }

    async fn text(&mut self) -> anyhow::Result<()> {
        self.begin("text with a passive reply: the crm answers the user")?;
        let (answer, _) = self.stage.push(&Kind::Text { content: "where is my order?".to_owned() }).await?;
        let reply = replied(&answer)?;
        ensure!(reply.contains("crm says"), "another reply: {reply}");
        let delivery = next(&mut self.stage.crm).await?;
        self.delivered("crm", &delivery)?;
        self.shown(&format!("its reply reached WeChat sealed, {}", took(&answer)))
    }

    async fn click(&mut self) -> anyhow::Result<()> {
        self.begin("menu click: fanned out to both handlers")?;
        let (answer, _) = self.stage.push(&Kind::Click { key: "MENU_ORDERS".to_owned() }).await?;
        received(&answer)?;
        let (crm, stats) = (next(&mut self.stage.crm).await?, next(&mut self.stage.stats).await?);
        ensure!(crm.event_id() == stats.event_id(), "two events");
        self.delivered("crm", &crm)?;
        self.delivered("stats", &stats)
    }

    async fn retry(&mut self) -> anyhow::Result<()> {
        self.begin("WeChat's retry: the same text again, sealed anew, changes nothing")?;
        let (first, clear) = self.stage.push(&Kind::Text { content: "hello?".to_owned() }).await?;
        let delivery = next(&mut self.stage.crm).await?;
        self.delivered("crm", &delivery)?;
        let before = self.stage.settled().await?;
        let second = self.stage.wechat.push(&self.stage.url, &clear, USER).await?;
        ensure!(replied(&first)? == replied(&second)?, "another reply");
        let after = self.stage.settled().await?;
        ensure!(before == after, "the retry made an event");
        self.shown(&format!("the same reply, still {} events and {} deliveries", after.events, after.deliveries))
    }

    async fn forgery(&mut self) -> anyhow::Result<()> {
        self.begin("a forged push: right form, wrong token")?;
        let before = self.stage.audit()?;
        let (honest, scan) = (self.stage.credentials()?, Kind::Scan { scene: "login_9".to_owned() });
        let forger = stage::once(Credentials { token: Secret::new("guessed"), ..honest });
        let answer = forger.push(&self.stage.url, &stage::clear(&scan)?, USER).await?;
        ensure!(answer.status == Some(403), "status {:?}", answer.status);
        ensure!(before == self.stage.audit()?, "the forgery was stored");
        self.shown("refused with 403, nothing stored, nobody told")
    }

    async fn outage(&mut self) -> anyhow::Result<()> {
        self.begin("an identity outage: the provider answers 503, then comes back")?;
        self.stage.login.set_status(StatusCode::SERVICE_UNAVAILABLE);
        let (answer, _) = self.stage.push(&Kind::Scan { scene: "login_10".to_owned() }).await?;
        received(&answer)?;
        self.shown(&format!("WeChat is answered all the same, {}", took(&answer)))?;
        let outage = Instant::now();
        for _ in 0..2 {
            let failed = next(&mut self.stage.login).await?;
            self.delivered("login", &failed)?;
        }
        self.stage.login.set_status(StatusCode::OK);
        let healed = next(&mut self.stage.login).await?;
        ensure!(healed.status == 200, "status {}", healed.status);
        self.delivered("login", &healed)?;
        self.shown(&format!("the same event arrived after {:.1} s of outage", outage.elapsed().as_secs_f64()))
    }

    async fn ledger(&mut self) -> anyhow::Result<()> {
        self.begin("the audit: every delivery that was accepted is accounted for")?;
        let audit = self.stage.settled().await?;
        self.say(&audit::text(&audit))?;
        ensure!(audit.is_clean() && audit.counts.delivered == audit.deliveries, "the ledger does not add up");
        Ok(())
    }

    async fn keep_running(&mut self) -> anyhow::Result<()> {
        let (token, key) = (self.stage.token.expose(), self.stage.key.expose());
        let program = std::env::args().next().unwrap_or_else(|| "wxrelay".to_owned());
        self.say(&format!(
            "It keeps running. In another terminal:\n\n  \
             {program} simulate --to {} --token {token} --key {key} --app-id wx0123456789abcdef text \"hi\"\n  \
             {program} simulate ... scan | subscribe | click | storm\n  \
             {program} events ls -c {folder}/config.toml\n  \
             {program} audit -c {folder}/config.toml\n  \
             curl http://{}/metrics\n\n\
             Next: `wxrelay init` writes a configuration for a real account. Ctrl-C ends the demo.\n",
            self.stage.url,
            self.stage.app.admin_address(),
            folder = self.stage.folder.path().display(),
        ))?;
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        loop {
            let Stage { login, crm, stats, .. } = &mut self.stage;
            let (name, delivery) = tokio::select! {
                Some(delivery) = login.received.recv() => ("login", delivery),
                Some(delivery) = crm.received.recv() => ("crm", delivery),
                Some(delivery) = stats.received.recv() => ("stats", delivery),
                result = tokio::signal::ctrl_c() => return Ok(result?),
                _ = terminate.recv() => return Ok(()),
            };
            self.delivered(name, &delivery)?;
        }
    }

    fn begin(&mut self, what: &str) -> anyhow::Result<()> {
        self.step += 1;
        let (bold, plain) = if self.color { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        self.say(&format!("\n{bold}{}. {what}{plain}", self.step))
    }

    fn shown(&self, what: &str) -> anyhow::Result<()> {
        let (green, plain) = if self.color { ("\x1b[32m", "\x1b[0m") } else { ("", "") };
        self.say(&format!("   {green}✓{plain} {what}"))
    }

    fn delivered(&self, target: &str, delivery: &Delivery) -> anyhow::Result<()> {
        let id = delivery.event_id().context("no event id")?;
        let attempt = delivery.attempt().context("no attempt number")?;
        let Delivery { kind, status, body, .. } = delivery;
        let what = format!("{target:5} got {id} ({kind}, {} bytes), attempt {attempt} -> {status}", body.len());
        if *status == 200 { self.shown(&what) } else { self.say(&format!("   ✗ {what}")) }
    }

    fn say(&self, text: &str) -> anyhow::Result<()> {
        Ok(writeln!(io::stdout(), "{text}")?)
    }
}

/// The clear reply that the user sees.
fn replied(answer: &Answer) -> anyhow::Result<&str> {
    answer.opened().with_context(|| format!("no reply: {:?}", answer.verdict))
}

fn received(answer: &Answer) -> anyhow::Result<()> {
    ensure!(matches!(answer.verdict, Verdict::Received), "not answered `success`: {:?}", answer.verdict);
    Ok(())
}

fn took(answer: &Answer) -> String {
    format!("after {:.1} ms", answer.took.as_secs_f64() * 1e3)
}
