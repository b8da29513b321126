//! Questions on a terminal, for an operator who gave no flag of the account. Each answer has the value of a flag.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use anyhow::{Context as _, bail};

use super::{Args, ProviderChoice, check_token, word};
use crate::cli::output;
use crate::secret::Secret;
use crate::wechat::{AesKey, Mode};

/// The longest answer that is read.
const MAX_ANSWER: u64 = 4096;

/// Checks an answer; the error says what was expected.
type Check<'a> = &'a dyn Fn(&str) -> Result<(), String>;

/// Whether somebody is there to answer.
pub(super) fn can_ask() -> bool {
    io::stdin().is_terminal() && output::is_terminal()
}

/// Asks for AppID, provider, mode, and the token and key to keep.
pub(super) fn ask(args: &mut Args) -> anyhow::Result<()> {
    writeln!(output::stdout(), "Enter takes what is in brackets.\n")?;
    args.app_id = given(answer("AppID of the account, such as wx0123456789abcdef [later]", &optional_word)?);
    let question = "Who logs users in by scans? 1 nobody, 2 Authing, 3 GenAuth, 4 BambooCloud [1]";
    args.provider = match answer(question, &|text| one_of(text, &["", "1", "2", "3", "4"]))?.as_str() {
        "2" => Some(ProviderChoice::Authing),
        "3" => Some(ProviderChoice::Genauth),
        "4" => Some(ProviderChoice::Bamboocloud),
        _ => None,
    };
    match args.provider {
        Some(ProviderChoice::Authing | ProviderChoice::Genauth) => {
            args.identifier = given(answer("  Identifier of its connection, such as my-connection", &required_word)?);
            args.user_pool_id = given(answer("  ID of the user pool", &required_word)?);
        }
        Some(ProviderChoice::Bamboocloud) => {
            args.domain = given(answer("  Domain of the tenant, such as tenant.example.com", &required_word)?);
            args.idp_id = given(answer("  ID of the authentication source", &required_word)?);
        }
        None => {}
    }
    let modes = ["", "secure", "compatible", "plaintext"];
    let question = "Mode in WeChat's console: secure, compatible, or plaintext (test accounts) [secure]";
    args.mode = given(answer(question, &|text| one_of(text, &modes))?).and_then(|mode| mode.parse().ok());
    writeln!(output::stdout(), "Does WeChat's console have a server URL today? Then keep its secrets.")?;
    let token = answer("  Token of today [a fresh one]", &|text| match text {
        "" => Ok(()),
        token => check_token(token).map_err(str::to_owned),
    })?;
    args.token = given(token).map(Secret::new);
    if args.mode() != Mode::Plaintext {
        let key = answer("  EncodingAESKey of today [a fresh one]", &|text| match text {
            "" => Ok(()),
            key => AesKey::parse(key).map(drop).map_err(|error| error.to_string()),
        })?;
        args.key = given(key).map(Secret::new);
    }
    writeln!(output::stdout())?;
    Ok(())
}

fn given(answer: String) -> Option<String> {
    (!answer.is_empty()).then_some(answer)
}

/// Asks until an answer is accepted.
fn answer(question: &str, check: Check<'_>) -> anyhow::Result<String> {
    loop {
        let mut out = output::stdout();
        write!(out, "{question}: ")?;
        out.flush()?;
        let mut line = String::new();
        let read = io::stdin().lock().take(MAX_ANSWER).read_line(&mut line).context("the answer cannot be read")?;
        if read == 0 {
            bail!("no answer: nothing is written");
        }
        let text = line.trim();
        match check(text) {
            Ok(()) => return Ok(text.to_owned()),
            Err(problem) => writeln!(out, "  {problem}")?,
        }
    }
}

fn optional_word(text: &str) -> Result<(), String> {
    if text.is_empty() { Ok(()) } else { required_word(text) }
}

fn required_word(text: &str) -> Result<(), String> {
    word(text).map(drop).map_err(str::to_owned)
}

fn one_of(text: &str, allowed: &[&str]) -> Result<(), String> {
    let named = || allowed.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(", ");
    if allowed.contains(&text) { Ok(()) } else { Err(format!("expected one of {}", named())) }
}
