//! The groups of the top-level help: run, try, inspect, fix.
//!
//! clap knows no headings for commands, so the list is written into the help template, from clap's own names and texts.

use clap::builder::StyledStr;
use clap::{Command as ClapCommand, Subcommand as _};

use super::Command;

const GROUPS: [(&str, &[&str]); 4] = [
    ("Run", &["init", "check", "serve", "reload", "healthcheck", "keygen", "completions", "man"]),
    ("Try", &["demo", "simulate", "sink"]),
    ("Inspect", &["status", "checks", "replicas", "doctor", "events", "top", "why", "audit"]),
    ("Fix", &["dead", "targets", "store"]),
];

/// The template of `wxrelay --help`, with the commands by group.
pub(super) fn help_template() -> StyledStr {
    let commands = Command::augment_subcommands(ClapCommand::new("wxrelay"));
    let mut template = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    for (group, names) in GROUPS {
        template += &format!("\n{}\n", heading(group));
        for name in names {
            let about = commands.find_subcommand(name).and_then(ClapCommand::get_about);
            template += &format!("  {name:<11}  {}\n", about.map(ToString::to_string).unwrap_or_default());
        }
    }
    template += &format!("\n{}\n{{options}}\n\n", heading("Options"));
    template += "`wxrelay COMMAND --help` shows the options of a command.{after-help}\n";
    template.into()
}

/// A heading in clap's own style, which clap removes where there is no terminal.
fn heading(text: &str) -> String {
    format!("\x1b[1m\x1b[4m{text}:\x1b[0m")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn each_command_is_in_exactly_one_group() {
        let grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let commands = Cli::command();
        let known: Vec<_> = commands.get_subcommands().map(ClapCommand::get_name).collect();
        assert!(known.len() > 10, "{known:?}");
        for name in &known {
            assert_eq!(grouped.iter().filter(|grouped| *grouped == name).count(), 1, "{name}");
        }
        assert_eq!(grouped.len(), known.len(), "no group has another command");
    }

    #[test]
    fn the_help_lists_every_command_with_its_text_under_its_group() {
        let help = Cli::command().render_long_help().to_string();
        for (group, names) in GROUPS {
            let (_, below) = help.split_once(&format!("\n{group}:\n")).unwrap_or_else(|| panic!("{group} in {help}"));
            let list = below.split("\n\n").next().unwrap_or_default();
            for name in names {
                let line = list.lines().find(|line| line.trim_start().starts_with(&format!("{name} ")));
                assert!(line.is_some_and(|line| line.trim().len() > name.len() + 10), "{name} in {list}");
            }
        }
    }
}
