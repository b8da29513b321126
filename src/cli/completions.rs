//! `wxrelay completions`: completion scripts for shells, with the names of the configured targets and accounts.
//!
//! clap_complete writes the scripts. Where a name is asked for, they call `wxrelay completions --names` again, which reads
//! the configuration, or asks the running relay.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;
use super::access::RelayArgs;
use super::output;
use crate::admin::Status;

/// `wxrelay completions`
#[derive(clap::Args)]
pub struct Args {
    /// Print the script for this shell, such as bash
    #[arg(required_unless_present = "names")]
    shell: Option<Shell>,
    /// Print the names of the targets or accounts, one per line
    #[arg(long, value_name = "KIND", hide = true)]
    names: Option<NameKind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum NameKind {
    Targets,
    Accounts,
}

/// Prints the script, or names.
///
/// # Errors
/// If it cannot be written, or no names are known.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(kind) = args.names {
        for name in names(&RelayArgs::of_environment(), kind).await? {
            output::stdout().write_line(&name)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let shell = args.shell.context("no shell")?;
    // Buffered, since clap_complete panics if stdout is closed early.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wxrelay", &mut script);
    let script = with_names(shell, String::from_utf8(script)?);
    output::exact_stdout().write_all(script.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

async fn names(relay: &RelayArgs, kind: NameKind) -> anyhow::Result<Vec<String>> {
    if let Some(configured) = relay.configured_names() {
        return Ok(match kind {
            NameKind::Targets => configured.targets,
            NameKind::Accounts => configured.accounts,
        });
    }
    let status: Status = relay.api()?.get("/api/status").await?;
    Ok(match kind {
        NameKind::Targets => status.targets.into_iter().map(|target| target.name).collect(),
        NameKind::Accounts => status.accounts.into_iter().map(|account| account.name).collect(),
    })
}

/// Adds the names to a script; that of elvish and of powershell stays as it is.
fn with_names(shell: Shell, script: String) -> String {
    match shell {
        Shell::Bash => script + BASH,
        Shell::Fish => script + FISH,
        Shell::Zsh => zsh(&script),
        _ => script,
    }
}

const BASH: &str = r#"
_wxrelay_names() {
    local kind="" cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"
    case "${COMP_WORDS[1]} $prev" in
        "simulate --to" | "init --account") ;;
        *" --target" | *" --to") kind=targets ;;
        *" --account") kind=accounts ;;
        "targets pause" | "targets resume" | "targets drop" | "targets redirect") kind=targets ;;
        "dead retry" | "dead drop") kind=targets ;;
    esac
    if [[ -n "$kind" && "$cur" != -* ]]; then
        COMPREPLY=($(compgen -W "$(wxrelay completions --names "$kind" 2>/dev/null)" -- "$cur"))
        [[ ${#COMPREPLY[@]} -gt 0 ]] && return 0
    fi
    _wxrelay "$@"
}
complete -F _wxrelay_names -o bashdefault -o default wxrelay
"#;

const FISH: &str = r#"
function __wxrelay_names
    wxrelay completions --names $argv[1] 2>/dev/null
end
complete -c wxrelay -n "__fish_seen_subcommand_from targets; and __fish_seen_subcommand_from pause resume drop redirect" -f -a "(__wxrelay_names targets)"
complete -c wxrelay -n "__fish_seen_subcommand_from dead; and __fish_seen_subcommand_from retry drop" -f -a "(__wxrelay_names targets)"
complete -c wxrelay -n "__fish_seen_subcommand_from events dead" -l target -x -a "(__wxrelay_names targets)"
complete -c wxrelay -n "__fish_seen_subcommand_from replay redirect" -l to -x -a "(__wxrelay_names targets)"
complete -c wxrelay -n "__fish_seen_subcommand_from events simulate" -l account -x -a "(__wxrelay_names accounts)"
"#;

const ZSH: &str = r#"
(( $+functions[_wxrelay_targets] )) || _wxrelay_targets() {
    local -a names
    names=(${(f)"$(wxrelay completions --names targets 2>/dev/null)"})
    compadd -a names
}
(( $+functions[_wxrelay_accounts] )) || _wxrelay_accounts() {
    local -a names
    names=(${(f)"$(wxrelay completions --names accounts 2>/dev/null)"})
    compadd -a names
}
"#;

/// Replaces what zsh completes where a target or an account is meant.
fn zsh(script: &str) -> String {
    let mut out = String::new();
    for (number, line) in script.lines().enumerate() {
        let is_target = line.contains("'--target=") || line.contains(":TARGET:") || line.contains(":target --");
        let is_account = line.contains("'--account=") && !line.contains("Name the account");
        let action = if is_target { ":_wxrelay_targets" } else { ":_wxrelay_accounts" };
        if is_target || is_account {
            out += &line.replace(":_default'", &format!("{action}'"));
        } else {
            out += line;
        }
        out.push('\n');
        if number == 0 {
            out += ZSH;
        }
    }
    out
}
