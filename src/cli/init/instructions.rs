//! The operator's next steps, in order.

use std::fmt::Write as _;
use std::path::Path;

use super::{Args, ProviderChoice, systemd};
use crate::cli::console_paths::{APP_ID, ConsolePage, DEVELOPER_KEYS, SERVER_SETTINGS};
use crate::config::PLACEHOLDER;
use crate::wechat::Mode;

/// The text of all steps. `token` and `key` are shown as they are given.
pub(super) fn steps(args: &Args, dir: &Path, token: &str, key: &str) -> String {
    let file = dir.join("config.toml");
    let file = file.display();
    let mut text = match args.systemd {
        true => String::new(),
        false => format!("Written: {file}, and the secrets beside it. Only their owner can read them.\n"),
    };
    let mut number = 0;
    let mut step = |title: &str, body: &str| {
        number += 1;
        // Writing to a String cannot fail.
        writeln!(text, "\n{number}. {title}\n{body}").ok();
    };
    if args.app_id.is_none() {
        let page = console_page(&APP_ID);
        step("Set your AppID", &format!("   app_id in {file}, instead of {PLACEHOLDER}. Find it at\n{page}"));
    }
    if args.systemd {
        step("Start it, and act as WeChat", &systemd::commands(&args.root));
    } else {
        step(
            "Check, start and try it",
            &format!(
                "   wxrelay check -c {file}\n   wxrelay serve -c {file}\n   \
                 In another terminal, instead of your handler:\n   \
                 wxrelay sink\n   \
                 In a third, instead of WeChat:\n   \
                 wxrelay simulate -c {file} verify\n   \
                 wxrelay simulate -c {file} text hello"
            ),
        );
    }
    step(
        "Make it reachable",
        &format!(
            "   WeChat calls port 80 or 443 only. Forward {}{} to {}\n   \
             by a reverse proxy that keeps the query and does not redirect, or set `tls` in [server].",
            args.public_url.trim_end_matches('/'),
            args.path,
            args.listen
        ),
    );
    step("Enter it in WeChat's console while the relay runs: saving sends a verification", &console(args, token, key));
    step("Identity provider", &provider_step(args.provider));
    text
}

fn console(args: &Args, token: &str, key: &str) -> String {
    let mode = match args.mode() {
        Mode::Plaintext => "明文模式 (plaintext)",
        Mode::Compatible => "兼容模式 (compatible)",
        Mode::Secure => "安全模式 (secure)",
    };
    let key = if args.mode() == Mode::Plaintext { "any: not used in plaintext mode" } else { key };
    format!(
        "{}\n   \
         服务器地址(URL)                 {}{}\n   \
         令牌(Token)                     {token}\n   \
         消息加解密密钥(EncodingAESKey)  {key}\n   \
         消息加解密方式                  {mode}\n   \
         Saving switches off the auto-replies and menus that were made in the console.",
        console_page(&SERVER_SETTINGS),
        args.public_url.trim_end_matches('/'),
        args.path,
    )
}

/// The new and the old path of a page, one line each.
fn console_page(page: &ConsolePage) -> String {
    format!("   {}\n   (accounts that still see the old console: {})", page.path, page.old_path)
}

fn provider_step(provider: Option<ProviderChoice>) -> String {
    let Some(provider) = provider else {
        return "   None yet: your handler gets every event. For logins by Authing, GenAuth or BambooCloud run `init` again\n   \
                with --provider, or add [targets.login] with role = \"identity\"."
            .to_owned();
    };
    let page = match provider {
        ProviderChoice::Authing | ProviderChoice::Genauth => {
            "the connection \"WeChat Official Account QR code\" (微信公众号关注登录)"
        }
        ProviderChoice::Bamboocloud => {
            "the authentication source WeChat, scenario Official Account Authorization Login"
        }
    };
    format!(
        "   In {provider}: {page}.\n   \
         AppID, 令牌(Token), 消息加解密密钥(EncodingAESKey) and 消息加解密方式 are the same as in WeChat's console, letter for letter.\n   \
         Do not enter its callback URL in WeChat's console: the relay forwards follows and scans to it.\n   \
         Add {provider}'s outgoing addresses to WeChat's IP白名单 (IP list), at\n{}",
        console_page(&DEVELOPER_KEYS),
    )
}
