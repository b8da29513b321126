//! `wxrelay simulate`: acts as WeChat.
//!
//! [`WechatClient`] also works without the command line; [`PushKind`] writes the messages. Undocumented behaviour of
//! WeChat's servers is not simulated (frequency limits, a minute without pushes after MarkFail).

mod account;
mod client;
#[cfg(test)]
mod client_tests;
mod http10;
mod kind;
mod report;
mod storm;
mod url;
mod verdict;

use std::io::{self, Read, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;

pub use self::client::{PushAnswer, RetryTiming, WechatClient};
pub use self::http10::Http10Error;
pub(super) use self::http10::{ClientStream, RawResponse, exchange_over, get};
pub use self::kind::{MessageAddresses, MessageIds, PushKind};
pub use self::url::{ServerUrl, ServerUrlError};
pub use self::verdict::{AnswerError, AnswerVerdict, USER_SEES};
pub(super) use self::{account::CredentialArgs, account::secret, client::salt};
use super::fixable::fixable;
use super::output;
use crate::escape;
use crate::wechat::Message;

/// `wxrelay simulate`
#[derive(clap::Args)]
pub struct Args {
    /// Push to this server URL, such as http://127.0.0.1:8080/wechat/events; may be repeated (a storm alternates)
    /// [default: the account's path at the relay's first TCP listener]
    #[arg(long, global = true, value_name = "URL")]
    to: Vec<ServerUrl>,
    /// Push as the user with this OpenID
    #[arg(long, global = true, default_value = "oSimulated_00000000000000001")]
    openid: String,
    /// Set the account's original ID, as in ToUserName
    #[arg(long, global = true, value_name = "ID", default_value = "gh_000000000000")]
    original_id: String,
    /// Make at most this many attempts until the answer is 200
    #[arg(long, global = true, default_value = "3")]
    tries: NonZeroU32,
    /// Wait this long after an attempt that failed, such as 500ms; WeChat's limit of 5s for each makes its rhythm
    #[arg(long, global = true, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    retry_after: Duration,
    /// Print one JSON object for each push
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    account: account::AccountArgs,
    #[command(subcommand)]
    kind: SimulateCommand,
}

#[derive(Subcommand)]
enum SimulateCommand {
    /// Send the GET by which WeChat's console verifies a server URL
    Verify,
    /// Send a text message
    Text {
        /// Send this text
        #[arg(default_value = "hello")]
        text: String,
    },
    /// Follow the account
    Subscribe {
        /// Follow by a QR code with this scene, such as login_7
        #[arg(long)]
        scene: Option<String>,
    },
    /// Scan a parametric QR code as a follower
    Scan {
        /// Scan the code with this scene, such as login_7
        #[arg(long, default_value = "login_7")]
        scene: String,
    },
    /// Unfollow the account
    Unsubscribe,
    /// Tap a menu button
    Click {
        /// Tap the button with this key, such as V1001
        #[arg(value_name = "KEY", default_value = "menu_1")]
        button: String,
    },
    /// Tap a menu link
    View {
        /// Tap the link with this URL, such as https://example.com/
        #[arg(default_value = "https://example.com/")]
        url: String,
    },
    /// Send the clear text from a file, XML or JSON
    Raw {
        /// Read this file, or stdin with `-`
        file: PathBuf,
    },
    /// Send many pushes, and print a summary
    Storm(storm::Args),
}

/// The request that one run sends to each URL.
enum SimulatedRequest {
    Verification,
    Push { kind: &'static str, clear: String, openid: String },
}

/// Sends, judges and prints; exit code 1 if WeChat would reject an answer.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let account = args.account.resolve()?;
    let to = if args.to.is_empty() { account.url.clone().into_iter().collect() } else { args.to };
    let url = "add --to with the server URL, such as http://127.0.0.1:8080/wechat/events";
    anyhow::ensure!(!to.is_empty(), fixable("no URL to push to", url));
    let timing = RetryTiming { tries: args.tries.get(), retry_after: args.retry_after, ..RetryTiming::default() };
    let client = WechatClient::new(account.credentials.clone()).with_timing(timing);
    let addresses = MessageAddresses { openid: &args.openid, account: &args.original_id };
    let work = match args.kind {
        SimulateCommand::Storm(storm) => return storm::run(client, &to, &args.original_id, &storm, args.json).await,
        SimulateCommand::Verify => SimulatedRequest::Verification,
        SimulateCommand::Raw { file } => raw(&file, args.openid.clone())?,
        SimulateCommand::Text { text } => written(&PushKind::Text { content: text }, addresses)?,
        SimulateCommand::Subscribe { scene } => written(&PushKind::Subscribe { scene }, addresses)?,
        SimulateCommand::Scan { scene } => written(&PushKind::Scan { scene }, addresses)?,
        SimulateCommand::Unsubscribe => written(&PushKind::Unsubscribe, addresses)?,
        SimulateCommand::Click { button } => written(&PushKind::Click { key: button }, addresses)?,
        SimulateCommand::View { url } => written(&PushKind::View { url }, addresses)?,
    };
    let mut ok = true;
    for url in &to {
        let (name, openid, answer) = match &work {
            SimulatedRequest::Verification => ("verify", "", client.verify(url).await?),
            SimulatedRequest::Push { kind, clear, openid } => {
                (*kind, openid.as_str(), client.push(url, clear, openid).await?)
            }
        };
        ok &= answer.verdict.is_ok();
        let hint = match (&work, &answer.verdict) {
            (SimulatedRequest::Push { clear, .. }, AnswerVerdict::Received) => account.missing_reply(clear),
            _ => account.of_refusal(&answer),
        };
        if args.json {
            writeln!(output::stdout(), "{}", report::line(url, name, openid, &answer))?;
        } else {
            let hint = hint.map(|hint| format!("\n  -> {}", escape::line(&hint))).unwrap_or_default();
            writeln!(output::stdout(), "{}{hint}", report::text(url, name, client.tries(), &answer))?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn written(kind: &PushKind, addresses: MessageAddresses<'_>) -> anyhow::Result<SimulatedRequest> {
    let clear = kind.clear_xml(addresses, &MessageIds::now()?);
    Ok(SimulatedRequest::Push { kind: kind.name(), clear, openid: addresses.openid.to_owned() })
}

/// Makes a push of a file's text, unchanged; the text's own FromUserName, if any, goes into the query.
fn raw(file: &Path, openid: String) -> anyhow::Result<SimulatedRequest> {
    let clear = if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let clear = clear
        .with_context(|| fixable(format_args!("can't read {}", file.display()), "give a UTF-8 file, or - for stdin"))?;
    let own = Message::parse(clear.as_bytes()).ok().map(|message| message.from_user().to_owned());
    let openid = own.filter(|own| !own.is_empty()).unwrap_or(openid);
    Ok(SimulatedRequest::Push { kind: "raw", clear, openid })
}
