//! The second act: the demo keeps running, and a person breaks a target and watches retries, the circuit breaker and the
//! recovery.

use std::time::Duration;

use http::StatusCode;
use tokio::signal::unix::{SignalKind, signal};

use super::environment::DemoEnvironment;
use super::keyboard::Keyboard;
use super::{DemoRun, format_duration};
use crate::cli::api::{AdminAddress, Api};
use crate::cli::audit;
use crate::cli::console_paths::TEST_ACCOUNT;
use crate::cli::display::Color;
use crate::cli::simulate::PushKind;
use crate::cli::top::is_down;

/// The target that is broken.
const BROKEN: &str = "crm";
/// The users who write to it then: enough to open the breaker.
const TEXTS: [&str; 3] = ["are you there?", "hello?", "anybody?"];
/// The time between two reads of the breaker's state.
const LOOK: Duration = Duration::from_millis(300);
/// The longest path of the program that is printed in commands; else its name.
const PROGRAM: usize = 30;

/// What happened while the demo keeps running.
enum Happening {
    Delivery(&'static str, Box<crate::cli::sink::ReceivedDelivery>),
    Line(Option<String>),
    Look,
    End,
}

impl DemoRun {
    /// Runs until `q`, SIGINT or SIGTERM.
    pub(super) async fn keep_running(&mut self) -> anyhow::Result<()> {
        self.print_next_steps()?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let address: AdminAddress = self.environment.app.admin_address().parse().map_err(anyhow::Error::msg)?;
        let api = Api::at(address);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut was_down = false;
        loop {
            let DemoEnvironment { login, crm, stats, .. } = &mut self.environment;
            let keyboard = &mut self.keyboard;
            let happened = tokio::select! {
                Some(delivery) = login.received.recv() => Happening::Delivery("login", delivery.into()),
                Some(delivery) = crm.received.recv() => Happening::Delivery("crm", delivery.into()),
                Some(delivery) = stats.received.recv() => Happening::Delivery("stats", delivery.into()),
                line = next_line(keyboard) => Happening::Line(line),
                () = async { looks.tick().await; } => Happening::Look,
                _ = interrupt.recv() => Happening::End,
                _ = terminate.recv() => Happening::End,
            };
            match happened {
                Happening::Delivery(name, delivery) => self.print_delivery(name, &delivery)?,
                Happening::Look => {
                    let Ok(metrics) = api.get::<String>("/metrics").await else { continue };
                    let now_down = is_down(BROKEN, &metrics);
                    if now_down != was_down {
                        self.print_breaker(now_down)?;
                    }
                    was_down = now_down;
                }
                Happening::Line(Some(line)) if line != "q" => self.act(&line).await?,
                Happening::Line(_) => {
                    let audit = self.environment.audit().await?;
                    return self.print(&audit::text(&audit));
                }
                Happening::End => return Ok(()),
            }
        }
    }

    fn print_next_steps(&self) -> anyhow::Result<()> {
        let program = std::env::args().next().filter(|path| path.len() <= PROGRAM);
        let program = program.unwrap_or_else(|| "wxrelay".to_owned());
        let folder = self.environment.folder.path().display();
        self.print_line("\nIt keeps running. In a browser:", Color::Bold)?;
        self.print(&format!("\n  http://{}/console/", self.environment.app.admin_address()))?;
        self.print_line("\nIn another terminal:", Color::Bold)?;
        self.print(&format!(
            "\n  export WXRELAY_CONFIG={folder}/config.toml\n  \
             {program} top\n  {program} events tail\n  {program} simulate text hello"
        ))?;
        if self.keyboard.is_some() {
            self.print_line("\nSecond act: break a target yourself. Enter", Color::Bold)?;
            self.print(
                "\n  b   break crm: it answers 503, and three users write to it\n  \
                 f   fix crm: the next probe closes the breaker, and everything arrives\n  \
                 t   send one text\n  \
                 q   end, with the audit (Ctrl-C ends, too)",
            )?;
        }
        self.print(&format!(
            "\nNext: `wxrelay init` writes a configuration for a real account, or for a test\n\
             account of {TEST_ACCOUNT}.\n\
             Ctrl-C ends the demo."
        ))
    }

    async fn act(&mut self, line: &str) -> anyhow::Result<()> {
        match line {
            "b" => {
                self.environment.crm.set_status(StatusCode::SERVICE_UNAVAILABLE);
                self.print("   crm answers 503 from now on; `f` fixes it")?;
                for text in TEXTS {
                    self.text_of_user(text).await?;
                }
                Ok(())
            }
            "f" => {
                self.environment.crm.set_status(StatusCode::OK);
                self.print("   crm answers 200 again; the next attempt or probe finds out")
            }
            "t" => self.text_of_user("hello").await,
            _ => self.print("   b breaks crm, f fixes it, t sends a text, q ends"),
        }
    }

    async fn text_of_user(&self, text: &str) -> anyhow::Result<()> {
        let (answer, _) = self.environment.push(&PushKind::Text { content: text.to_owned() }).await?;
        let reply = answer.opened().map_or_else(|| "no reply".to_owned(), |_| "the reply of crm".to_owned());
        self.print_result(&format!("WeChat sent a text and got 200 with {reply}, {}", format_duration(&answer)))
    }

    fn print_breaker(&self, is_open: bool) -> anyhow::Result<()> {
        let (mark, what, color) = if is_open {
            ('!', "the circuit breaker of crm is open: only probes, ever further apart", Color::Yellow)
        } else {
            ('✓', "the circuit breaker of crm is closed: what waited is delivered", Color::Green)
        };
        self.print_marked(mark, what, color)
    }
}

/// The next line; never where nobody can enter one.
async fn next_line(keyboard: &mut Option<Keyboard>) -> Option<String> {
    match keyboard {
        Some(keyboard) => keyboard.line().await,
        None => std::future::pending().await,
    }
}
