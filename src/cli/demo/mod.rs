//! `wxrelay demo`: the relay's main functions, step by step, with real sockets and a real store.
//!
//! Each step prints what it does, then verifies the result; a failed step ends the demo with an error. On a terminal it
//! pauses between the steps, and a second act lets the user break a target (`second_act.rs`).

mod environment;
mod keyboard;
#[cfg(feature = "postgres")]
mod postgres;
mod second_act;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use http::StatusCode;
use tokio::time::Instant;

use super::audit;
use super::display::{Color, StyledLine, allows_color, wrap};
use super::output;
use super::simulate::{AnswerVerdict, PushAnswer, PushKind};
use super::sink::ReceivedDelivery;
use crate::secret::Secret;
use crate::wechat::Credentials;

use environment::{DemoEnvironment, DemoStore, USER, next_delivery};
use keyboard::Keyboard;

/// `wxrelay demo`
#[derive(clap::Args)]
pub struct Args {
    /// End after the audit; exit with 0 if every step succeeded
    #[arg(long)]
    once: bool,
    /// Do not pause between the steps
    #[arg(long)]
    fast: bool,
    /// Keep the store in this PostgreSQL, such as postgres://wxrelay@127.0.0.1/wxrelay, in a schema that the demo creates
    /// and drops [default: SQLite in a temporary folder]
    #[cfg(feature = "postgres")]
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
}

/// Runs the steps; then keeps running, unless `--once`.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    #[cfg(feature = "postgres")]
    if let Some(url) = &args.postgres {
        let schema = postgres::DemoSchema::new(url)?;
        let result = run_with(&args, Some(schema.store())).await;
        let removed = schema.remove().await;
        return result.and_then(|code| removed.map(|()| code));
    }
    run_with(&args, None).await
}

/// Runs the demo with this store, or with one in its folder.
async fn run_with(args: &Args, store: Option<DemoStore>) -> anyhow::Result<ExitCode> {
    let environment = DemoEnvironment::start(store).await?;
    let width = output::terminal_width();
    let keyboard = (width.is_some() && io::stdin().is_terminal() && !args.once).then(Keyboard::new);
    let (color, is_paused) = (width.is_some() && allows_color(), !args.fast);
    let mut run = DemoRun { environment, step: 0, color, width: width.unwrap_or(80), keyboard, is_paused };
    let result = run.run_steps().await;
    let kept = if result.is_ok() && !args.once { run.keep_running().await } else { Ok(()) };
    run.environment.app.stop().await?;
    kept.and(result).map(|()| ExitCode::SUCCESS)
}

struct DemoRun {
    environment: DemoEnvironment,
    step: u32,
    color: bool,
    width: usize,
    /// Where a person watches.
    keyboard: Option<Keyboard>,
    /// Whether it waits for Enter before each step.
    is_paused: bool,
}

impl DemoRun {
    async fn run_steps(&mut self) -> anyhow::Result<()> {
        self.print_overview()?;
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

    fn print_overview(&self) -> anyhow::Result<()> {
        let (login, crm, stats) =
            (self.environment.login.address, self.environment.crm.address, self.environment.stats.address);
        self.print_line(&format!("wxrelay {}: one server URL, many targets", env!("CARGO_PKG_VERSION")), Color::Bold)?;
        let (folder, note) = (self.environment.folder.path().display(), &self.environment.store.note);
        self.print_wrapped(&format!("Everything is on 127.0.0.1, in {folder}"), 0, Color::Plain)?;
        if !note.is_empty() {
            self.print_wrapped(note, 0, Color::Plain)?;
        }
        self.print(&format!(
            "\n  WeChat (simulated)\n    │\n    ▼\n  \
             relay      {}\n    \
             ├─► login  identity provider (simulated Authing)  http://{login}\n    \
             ├─► crm    handler (simulated)                    http://{crm}\n    \
             └─► stats  handler (simulated)                    http://{stats}",
            self.environment.url,
        ))
    }

    async fn verification(&mut self) -> anyhow::Result<()> {
        self.start_step("URL verification: WeChat's console verifies the server URL").await?;
        let answer = self.environment.wechat.verify(&self.environment.url).await?;
        ensure!(matches!(answer.verdict, AnswerVerdict::Verified), "not verified: {:?}", answer.verdict);
        self.print_result(&format!("the signature is checked and the echostr comes back, {}", format_duration(&answer)))
    }

    async fn subscribe(&mut self) -> anyhow::Result<()> {
        self.start_step("subscribe: a user scans the login QR code and follows the account (scene login_7)").await?;
        let kind = PushKind::Subscribe { scene: Some("login_7".to_owned()) };
        let (answer, _) = self.environment.push(&kind).await?;
        let reply = reply_of(&answer)?;
        ensure!(reply.contains("Welcome!"), "another reply: {reply}");
        let delivery = next_delivery(&mut self.environment.login).await?;
        self.print_result(&format!("WeChat got the encrypted fixed reply \"Welcome!\", {}", format_duration(&answer)))?;
        self.print_delivery("login", &delivery)
    }

    async fn scan(&mut self) -> anyhow::Result<()> {
        self.start_step("SCAN: a follower scans the login QR code; it goes to the identity provider only").await?;
        let (answer, _) = self.environment.push(&PushKind::Scan { scene: "login_8".to_owned() }).await?;
        expect_success(&answer)?;
        let delivery = next_delivery(&mut self.environment.login).await?;
        ensure!(delivery.path == "/connections/social/demo/0123456789abcdef01234567/events", "path {}", delivery.path);
        ensure!(delivery.body.starts_with(br#"{"xml":{"tousername":["#), "not what Authing's sample sends");
        self.print_delivery("login", &delivery)
    }

    async fn text(&mut self) -> anyhow::Result<()> {
        self.start_step("text with a passive reply: crm answers the user").await?;
        let (answer, _) = self.environment.push(&PushKind::Text { content: "where is my order?".to_owned() }).await?;
        let reply = reply_of(&answer)?;
        ensure!(reply.contains("crm says"), "another reply: {reply}");
        let delivery = next_delivery(&mut self.environment.crm).await?;
        self.print_delivery("crm", &delivery)?;
        self.print_result(&format!("its reply reached WeChat encrypted, {}", format_duration(&answer)))
    }

    async fn click(&mut self) -> anyhow::Result<()> {
        self.start_step("menu click: fanned out to both handlers").await?;
        let (answer, _) = self.environment.push(&PushKind::Click { key: "MENU_ORDERS".to_owned() }).await?;
        expect_success(&answer)?;
        let (crm, stats) =
            (next_delivery(&mut self.environment.crm).await?, next_delivery(&mut self.environment.stats).await?);
        ensure!(crm.event_id() == stats.event_id(), "two events");
        self.print_delivery("crm", &crm)?;
        self.print_delivery("stats", &stats)
    }

    async fn retry(&mut self) -> anyhow::Result<()> {
        self.start_step("WeChat's retry: the same text again, encrypted again, changes nothing").await?;
        let (first, clear) = self.environment.push(&PushKind::Text { content: "hello?".to_owned() }).await?;
        let delivery = next_delivery(&mut self.environment.crm).await?;
        self.print_delivery("crm", &delivery)?;
        let before = self.environment.settled().await?;
        let second = self.environment.wechat.push(&self.environment.url, &clear, USER).await?;
        ensure!(reply_of(&first)? == reply_of(&second)?, "another reply");
        let after = self.environment.settled().await?;
        ensure!(before == after, "the retry made an event");
        self.print_result(&format!("the same reply, still {} events and {} deliveries", after.events, after.deliveries))
    }

    async fn forgery(&mut self) -> anyhow::Result<()> {
        self.start_step("a forged push: right form, wrong token").await?;
        let before = self.environment.audit().await?;
        let (honest, scan) = (self.environment.credentials()?, PushKind::Scan { scene: "login_9".to_owned() });
        let forger = environment::single_attempt_client(Credentials { token: Secret::new("guessed"), ..honest });
        let answer = forger.push(&self.environment.url, &environment::clear_text(&scan)?, USER).await?;
        ensure!(answer.status == Some(403), "status {:?}", answer.status);
        ensure!(before == self.environment.audit().await?, "the forgery was stored");
        self.print_result("refused with 403, nothing stored, nothing delivered")
    }

    async fn outage(&mut self) -> anyhow::Result<()> {
        self.start_step("an identity outage: the provider answers 503, then comes back").await?;
        self.environment.login.set_status(StatusCode::SERVICE_UNAVAILABLE);
        let (answer, _) = self.environment.push(&PushKind::Scan { scene: "login_10".to_owned() }).await?;
        expect_success(&answer)?;
        self.print_result(&format!("WeChat is answered nevertheless, {}", format_duration(&answer)))?;
        let outage = Instant::now();
        for _ in 0..2 {
            let failed = next_delivery(&mut self.environment.login).await?;
            self.print_delivery("login", &failed)?;
        }
        self.environment.login.set_status(StatusCode::OK);
        let healed = next_delivery(&mut self.environment.login).await?;
        ensure!(healed.status == 200, "status {}", healed.status);
        self.print_delivery("login", &healed)?;
        self.print_result(&format!("the same event arrived after {:.1} s of outage", outage.elapsed().as_secs_f64()))
    }

    async fn ledger(&mut self) -> anyhow::Result<()> {
        self.start_step("the audit: every delivery that was accepted is accounted for").await?;
        let audit = self.environment.settled().await?;
        self.print(&audit::text(&audit))?;
        ensure!(audit.is_clean() && audit.counts.delivered == audit.deliveries, "the counts do not add up");
        Ok(())
    }

    async fn start_step(&mut self, what: &str) -> anyhow::Result<()> {
        self.print("")?;
        if self.is_paused && self.keyboard.is_some() {
            self.print_line("   Enter: next step, f Enter: all of them", Color::Dim)?;
        }
        if let Some(keyboard) = self.keyboard.as_mut().filter(|_| self.is_paused)
            && keyboard.line().await.as_deref() == Some("f")
        {
            self.is_paused = false;
        }
        self.step += 1;
        self.print_wrapped(&format!("{}. {what}", self.step), 3, Color::Bold)
    }

    fn print_result(&self, what: &str) -> anyhow::Result<()> {
        self.print_marked('✓', what, Color::Green)
    }

    fn print_delivery(&self, target: &str, delivery: &ReceivedDelivery) -> anyhow::Result<()> {
        let id = delivery.event_id().unwrap_or("-");
        let attempt = delivery.attempt().map_or_else(|| "-".to_owned(), |attempt| attempt.to_string());
        let ReceivedDelivery { kind, status, body, .. } = delivery;
        let what = format!("{target:5} got {id} ({kind}, {} bytes), attempt {attempt} -> {status}", body.len());
        if *status == 200 { self.print_result(&what) } else { self.print_marked('✗', &what, Color::Red) }
    }

    fn print_marked(&self, mark: char, what: &str, color: Color) -> anyhow::Result<()> {
        let text = wrap(&format!("   {mark} {what}"), self.width, 5);
        let lines: Vec<_> = text.split('\n').map(|line| colored_mark(line, mark, color)).collect();
        Ok(output::print_lines(&lines, self.color)?)
    }

    fn print_line(&self, text: &str, color: Color) -> anyhow::Result<()> {
        let lines: Vec<_> = text.split('\n').map(|line| StyledLine::new(line, color)).collect();
        Ok(output::print_lines(&lines, self.color)?)
    }

    fn print_wrapped(&self, text: &str, margin: usize, color: Color) -> anyhow::Result<()> {
        self.print_line(&wrap(text, self.width, margin), color)
    }

    fn print(&self, text: &str) -> anyhow::Result<()> {
        self.print_line(text.trim_end_matches('\n'), Color::Plain)
    }
}

/// A line with its mark in colour, if it begins with one.
fn colored_mark(line: &str, mark: char, color: Color) -> StyledLine {
    match line.split_once(mark) {
        Some((before, after)) if before.trim().is_empty() => {
            StyledLine::plain(before).with(mark.encode_utf8(&mut [0; 4]), color).with(after, Color::Plain)
        }
        _ => StyledLine::plain(line),
    }
}

/// The decrypted reply that the user sees.
fn reply_of(answer: &PushAnswer) -> anyhow::Result<&str> {
    answer.opened().with_context(|| format!("no reply: {:?}", answer.verdict))
}

fn expect_success(answer: &PushAnswer) -> anyhow::Result<()> {
    ensure!(matches!(answer.verdict, AnswerVerdict::Received), "not answered `success`: {:?}", answer.verdict);
    Ok(())
}

fn format_duration(answer: &PushAnswer) -> String {
    format!("after {:.1} ms", answer.took.as_secs_f64() * 1e3)
}
