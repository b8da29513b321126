//! `wxrelay simulate`: acts as WeChat, faithfully.
//!
//! [`Sender`] is the core and of use without the command line; [`Kind`] makes the clear texts. Not here: the checks of
//! WeChat's own servers that no page describes (frequency limits, MarkFail's minute of silence).

mod account;
mod kind;
mod report;
mod sender;
#[cfg(test)]
mod sender_tests;
mod storm;
mod url;
mod verdict;
mod wire;

use std::io::{self, Read, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;

pub use self::kind::{Fresh, Kind, Parties};
pub use self::sender::{Answer, Sender, Timing};
pub use self::url::{BadServerUrl, ServerUrl};
pub use self::verdict::{Fault, USER_SEES, Verdict};
pub use self::wire::Failure;
pub(super) use self::wire::{Response, get, talk};
pub(super) use self::{account::Given, account::secret, sender::salt};
use crate::wechat::Message;

/// `wxrelay simulate`
#[derive(clap::Args)]
pub struct Args {
    /// The server URL to push to; may be repeated (a storm takes turns) [default: the account's path at the relay's first TCP listener]
    #[arg(long, global = true, value_name = "URL")]
    to: Vec<ServerUrl>,
    /// The user's OpenID
    #[arg(long, global = true, default_value = "oSimulated_00000000000000001")]
    openid: String,
    /// The account's original id, as in ToUserName
    #[arg(long, global = true, value_name = "ID", default_value = "gh_000000000000")]
    original_id: String,
    /// Tries in all while there is no 200
    #[arg(long, global = true, default_value = "3")]
    tries: NonZeroU32,
    /// The time between two tries
    #[arg(long, global = true, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    retry_after: Duration,
    /// Print one JSON object for each push
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    account: account::Flags,
    #[command(subcommand)]
    kind: KindArg,
}

/// What to send.
#[derive(Subcommand)]
enum KindArg {
    /// The GET by which WeChat's console checks a server URL
    Verify,
    /// A text message
    Text {
        /// What the user writes
        #[arg(default_value = "hello")]
        text: String,
    },
    /// A new follower
    Subscribe {
        /// The scene of the QR code that led here
        #[arg(long)]
        scene: Option<String>,
    },
    /// A follower who scans a parametric QR code
    Scan {
        /// The scene of the QR code
        #[arg(long, default_value = "login_7")]
        scene: String,
    },
    /// A follower who leaves
    Unsubscribe,
    /// A tap on a menu button
    Click {
        /// The button's key
        #[arg(value_name = "KEY", default_value = "menu_1")]
        button: String,
    },
    /// A tap on a menu link
    View {
        /// The link
        #[arg(default_value = "https://example.com/")]
        url: String,
    },
    /// A clear text out of a file, XML or JSON
    Raw {
        /// The file, or `-` for stdin
        file: PathBuf,
    },
    /// Many pushes, and a summary
    Storm(storm::Args),
}

/// What one run sends to each URL.
enum Work {
    Verification,
    Push { kind: &'static str, clear: String, openid: String },
}

/// Sends, judges and prints; exit code 1 if WeChat would be discontent with one answer.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (credentials, usual) = args.account.resolve()?;
    let to = if args.to.is_empty() { usual.into_iter().collect() } else { args.to };
    anyhow::ensure!(!to.is_empty(), "where to? Give --to URL, as in --to http://127.0.0.1:8080/wechat/events");
    let timing = Timing { tries: args.tries.get(), retry_after: args.retry_after, ..Timing::default() };
    let sender = Sender::new(credentials).with_timing(timing);
    let parties = Parties { openid: &args.openid, account: &args.original_id };
    let work = match args.kind {
        KindArg::Storm(storm) => return storm::run(sender, &to, &args.original_id, &storm, args.json).await,
        KindArg::Verify => Work::Verification,
        KindArg::Raw { file } => raw(&file, args.openid.clone())?,
        KindArg::Text { text } => written(&Kind::Text { content: text }, parties)?,
        KindArg::Subscribe { scene } => written(&Kind::Subscribe { scene }, parties)?,
        KindArg::Scan { scene } => written(&Kind::Scan { scene }, parties)?,
        KindArg::Unsubscribe => written(&Kind::Unsubscribe, parties)?,
        KindArg::Click { button } => written(&Kind::Click { key: button }, parties)?,
        KindArg::View { url } => written(&Kind::View { url }, parties)?,
    };
    let mut ok = true;
    for url in &to {
        let (name, openid, answer) = match &work {
            Work::Verification => ("verify", "", sender.verify(url).await?),
            Work::Push { kind, clear, openid } => (*kind, openid.as_str(), sender.push(url, clear, openid).await?),
        };
        ok &= answer.verdict.is_ok();
        if args.json {
            writeln!(io::stdout(), "{}", report::line(url, name, openid, &answer))?;
        } else {
            writeln!(io::stdout(), "{}", report::text(url, name, sender.tries(), &answer))?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn written(kind: &Kind, parties: Parties<'_>) -> anyhow::Result<Work> {
    let clear = kind.clear_xml(parties, &Fresh::now()?);
    Ok(Work::Push { kind: kind.name(), clear, openid: parties.openid.to_owned() })
}

/// A file's text is sent as it is; its own FromUserName goes into the query, if it has one.
fn raw(file: &Path, openid: String) -> anyhow::Result<Work> {
    let clear = if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let clear =
        clear.with_context(|| format!("can't read {}; raw takes a UTF-8 file, or - for stdin", file.display()))?;
    let own = Message::parse(clear.as_bytes()).ok().map(|message| message.from_user().to_owned());
    let openid = own.filter(|own| !own.is_empty()).unwrap_or(openid);
    Ok(Work::Push { kind: "raw", clear, openid })
}
