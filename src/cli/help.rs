//! What `--help` and the manual pages say beyond the options: examples of each command, and what leads from the words of
//! other programs to ours.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory as _, FromArgMatches as _};

use super::Cli;

/// The examples by command; of the program itself by an empty name.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("", &["wxrelay demo", "wxrelay init --dir wx --app-id wx0123456789abcdef", "wxrelay check -c wx/config.toml"]),
    ("serve", &["wxrelay serve -c /etc/wxrelay/config.toml", "WXRELAY__LOG__LEVEL=debug wxrelay serve"]),
    ("reload", &["wxrelay reload", "wxrelay reload --admin http://127.0.0.1:9180"]),
    ("check", &["wxrelay check -c wx/config.toml", "wxrelay check --online"]),
    ("doctor", &["wxrelay doctor --url https://relay.example.com/wechat/events"]),
    ("demo", &["wxrelay demo", "wxrelay demo --once"]),
    (
        "init",
        &[
            "wxrelay init --dir wx --app-id wx0123456789abcdef",
            "wxrelay init --dir wx --mode plaintext --app-id wx0123456789abcdef",
        ],
    ),
    (
        "simulate",
        &[
            "wxrelay simulate text hello",
            "wxrelay simulate scan --scene login_7",
            "wxrelay simulate --to https://relay.example.com/wechat/events verify",
        ],
    ),
    ("simulate verify", &["wxrelay simulate verify --to https://relay.example.com/wechat/events"]),
    ("simulate text", &["wxrelay simulate text hello"]),
    ("simulate subscribe", &["wxrelay simulate subscribe --scene login_7"]),
    ("simulate scan", &["wxrelay simulate scan --scene login_7"]),
    ("simulate unsubscribe", &["wxrelay simulate unsubscribe"]),
    ("simulate click", &["wxrelay simulate click menu_1"]),
    ("simulate view", &["wxrelay simulate view https://example.com/"]),
    ("simulate raw", &["wxrelay simulate raw -"]),
    ("simulate storm", &["wxrelay simulate storm --count 100 --rate 50"]),
    ("sink", &["wxrelay sink --reply \"hi\"", "wxrelay sink --fail 3 --stall 2s"]),
    ("events", &["wxrelay events ls --since 2h --state dead", "wxrelay events tail"]),
    (
        "events ls",
        &[
            "wxrelay events ls --since 2h --state pending",
            "wxrelay events ls --since 2026-11-20 --until 2026-11-21",
            "wxrelay events ls --account shop --event SCAN --limit 10",
        ],
    ),
    ("events show", &["wxrelay events show evt_1a1fe9c9a6a00000 --text"]),
    ("events tail", &["wxrelay events tail", "wxrelay events tail --target crm --json"]),
    (
        "events replay",
        &["wxrelay events replay evt_1a1fe9c9a6a00000", "wxrelay events replay --target crm --since 2h --dry-run"],
    ),
    ("events forget", &["wxrelay events forget --openid oW8zA5Iwd6kd03ULmV4kqY2mGcbM"]),
    ("status", &["wxrelay status", "wxrelay status --json"]),
    ("checks", &["wxrelay checks", "wxrelay checks --urgent --exit-code"]),
    ("replicas", &["wxrelay replicas"]),
    ("top", &["wxrelay top", "wxrelay top --once"]),
    ("why", &["wxrelay why '[OpenID=oW8zA5Iwd6kd03ULmV4kqY2mGcbM][Stamp=1763700001]'"]),
    ("targets", &["wxrelay targets ls", "wxrelay targets pause crm"]),
    ("targets ls", &["wxrelay targets ls"]),
    ("targets pause", &["wxrelay targets pause crm"]),
    ("targets resume", &["wxrelay targets resume crm"]),
    ("targets drop", &["wxrelay targets drop crm --dry-run"]),
    ("targets redirect", &["wxrelay targets redirect crm --to crm-new"]),
    ("dead", &["wxrelay dead ls", "wxrelay dead retry crm"]),
    ("dead ls", &["wxrelay dead ls --target crm"]),
    ("dead retry", &["wxrelay dead retry crm", "wxrelay dead retry --dry-run"]),
    ("dead drop", &["wxrelay dead drop crm --dry-run"]),
    ("audit", &["wxrelay audit", "wxrelay audit --deep --json"]),
    ("store", &["wxrelay store salvage"]),
    ("store salvage", &["wxrelay store salvage"]),
    ("store copy", &["wxrelay store copy --to postgres.toml"]),
    ("store sql", &["wxrelay store sql --role wxrelay"]),
    ("healthcheck", &["wxrelay healthcheck", "wxrelay healthcheck --admin unix:/run/wxrelay/admin.sock"]),
    ("keygen", &["wxrelay keygen", "wxrelay keygen --json"]),
    ("completions", &["wxrelay completions bash > wxrelay.bash"]),
    ("man", &["wxrelay man --dir man"]),
];

/// Commands of other programs, and ours for the same purpose.
const WORDS: &[(&str, &str)] = &[
    ("validate", "check"),
    ("lint", "check"),
    ("test", "check"),
    ("config", "check"),
    ("logs", "events tail"),
    ("log", "events tail"),
    ("tail", "events tail"),
    ("follow", "events tail"),
    ("list", "events ls"),
    ("ls", "events ls"),
    ("show", "events show ID"),
    ("replay", "events replay"),
    ("forget", "events forget"),
    ("retry", "dead retry"),
    ("dlq", "dead ls"),
    ("pause", "targets pause NAME"),
    ("resume", "targets resume NAME"),
    ("target", "targets ls"),
    ("start", "serve"),
    ("run", "serve"),
    ("server", "serve"),
    ("up", "serve"),
    ("send", "simulate text hello"),
    ("push", "simulate text hello"),
    ("verify", "simulate verify"),
    ("listen", "sink"),
    ("receive", "sink"),
    ("health", "healthcheck"),
    ("ping", "healthcheck"),
    ("ready", "healthcheck"),
    ("ps", "status"),
    ("info", "status"),
    ("stats", "top"),
    ("watch", "top"),
    ("metrics", "status"),
    ("diagnose", "doctor"),
    ("explain", "why"),
    ("new", "init"),
    ("setup", "init"),
    ("completion", "completions bash"),
    ("version", "--version"),
];

impl Cli {
    /// Reads the arguments of the process; ends it with 2 if they are wrong, and with 0 after a help.
    pub fn from_arguments() -> Self {
        let matches = command().try_get_matches().unwrap_or_else(|error| with_our_word(error).exit());
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// The command with the examples below each help.
fn command() -> Command {
    with_examples(Cli::command(), "")
}

fn with_examples(command: Command, name: &str) -> Command {
    let text = |lines: &[&str]| format!("Examples:\n  {}", lines.join("\n  "));
    let command = match examples(name) {
        [] => command,
        lines => command.after_help(text(lines)),
    };
    command.mut_subcommands(|command| {
        let name = format!("{name} {}", command.get_name());
        with_examples(command, name.trim_start())
    })
}

/// The examples of a command, such as `events ls`.
pub(super) fn examples(name: &str) -> &'static [&'static str] {
    EXAMPLES.iter().find(|(of, _)| *of == name).map_or(&[], |(_, lines)| lines)
}

/// Adds which command of ours an unknown word leads to.
fn with_our_word(mut error: clap::Error) -> clap::Error {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return error;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return error };
    let Some((_, ours)) = WORDS.iter().find(|(theirs, _)| theirs == word) else { return error };
    let tip = StyledStr::from(format!("that is `wxrelay {ours}`"));
    error.remove(ContextKind::SuggestedSubcommand);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    error
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn names(command: &Command, above: &str, into: &mut Vec<String>) {
        for command in command.get_subcommands() {
            let name = format!("{above} {}", command.get_name()).trim_start().to_owned();
            names(command, &name, into);
            into.push(name);
        }
    }

    #[test]
    fn every_command_has_examples_that_can_be_run_and_no_other() {
        let mut known = vec![String::new()];
        names(&Cli::command(), "", &mut known);
        assert!(known.len() > 30, "{known:?}");
        for name in &known {
            assert!(!examples(name).is_empty(), "{name} has no example");
            for example in examples(name) {
                assert!(example.len() <= 77, "{example}");
                let (_, arguments) = example.split_once("wxrelay ").unwrap();
                let arguments = arguments.split(" > ").next().unwrap_or_default().replace(['"', '\''], "");
                let line = ["wxrelay"].into_iter().chain(arguments.split(' '));
                assert!(Cli::try_parse_from(line).is_ok(), "{example}");
                assert!(arguments.starts_with(name.as_str()), "{example} is an example of {name}");
            }
        }
        for (name, _) in EXAMPLES {
            let is_known = known.iter().any(|known| known == name) || !cfg!(feature = "postgres");
            assert!(is_known, "{name} is no command");
        }
    }

    #[test]
    fn words_of_others_lead_to_commands_of_ours() {
        for (theirs, ours) in WORDS {
            let error = command().try_get_matches_from(["wxrelay", theirs]).unwrap_err();
            let shown = with_our_word(error).to_string();
            assert!(shown.contains(&format!("that is `wxrelay {ours}`")), "{theirs}: {shown}");
            assert!(!shown.contains("similar"), "{theirs}: {shown}");
            let line = format!("wxrelay {}", ours.replace("ID", "evt_1a1fe9c9a6a00000"));
            let error = Cli::try_parse_from(line.split(' ')).err().map(|error| error.kind());
            assert!(matches!(error, None | Some(ErrorKind::DisplayVersion)) || ours.contains("forget"), "{ours}");
        }
    }

    #[test]
    fn no_line_of_a_list_of_commands_is_wider_than_80_columns() {
        let help = command().render_help().to_string();
        for line in help.lines() {
            assert!(line.len() <= 80, "{} columns: {line}", line.len());
        }
        assert!(help.contains("Examples:\n  wxrelay demo"), "{help}");
    }
}
