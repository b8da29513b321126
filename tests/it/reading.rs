//! Files that the configuration names are read within bounds: an endless or huge file is an error and costs no memory;
//! a silent pipe is an error after a timeout.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::command::{Finished, Running, run, wxrelay};
use crate::support::wechat::WeChat;
use crate::tls::Certificate;

/// Runs a command with less memory than the file needs: a failed allocation would end it without an error about the
/// file.
const WITHIN_2_GB: &str = "ulimit -v 2000000; exec \"$0\" \"$@\"";

#[tokio::test]
async fn a_file_without_end_or_of_gigabytes_is_an_error_that_names_it() {
    let (folder, certificate) = (tempfile::tempdir().expect("a temporary folder"), Certificate::new());
    let huge = folder.path().join("huge");
    File::create(&huge).and_then(|file| file.set_len(10 << 30)).expect("a file with a hole");
    let account = WeChat::secure().account();
    let (cert, key) = (certificate.cert(), certificate.key());
    for path in [Path::new("/dev/zero"), &huge] {
        let output = check(path).await;
        assert_eq!(output.code, Some(78), "{output:?}");
        let expected = format!("{0}: cannot read this file: it is longer than 4 MiB", path.display());
        assert!(output.stderr.contains(&expected), "{}", output.stderr);

        let path = path.display();
        let target = |keys: &str| {
            let target = "[targets.login]\nrole = \"identity\"\nurl = \"https://a.example/\"\n";
            (String::new(), format!("{account}{target}{keys}\n"))
        };
        let cases = [
            (String::new(), account.replace("\"pamtest\"", &format!("{{ file = \"{path}\" }}"))),
            target(&format!("headers = {{ authorization = {{ file = \"{path}\" }} }}")),
            target(&format!("ca = \"{path}\"")),
            target(&format!("client_cert = \"{path}\"\nclient_key = \"{key}\"")),
            target(&format!("client_cert = \"{cert}\"\nclient_key = \"{path}\"")),
            (format!("tls = {{ cert = \"{path}\", key = \"{key}\" }}\n"), account.clone()),
            (format!("tls = {{ cert = \"{cert}\", key = \"{path}\" }}\n"), account.clone()),
        ];
        for (server, rest) in cases {
            let config = folder.path().join("config.toml");
            let text = format!(
                "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}[admin]\nlisten = \"127.0.0.1:0\"\n\
                 [queue]\npath = \"store\"\n{rest}"
            );
            fs::write(&config, &text).expect("the config can be written");
            let output = within(wxrelay(["serve", "-c"]), &config).await;
            assert_ne!(output.code, Some(0), "{text}");
            let said = output.stderr + &output.stdout;
            assert!(said.contains(&path.to_string()) && said.contains("it is longer than 4 MiB"), "{text}\n{said}");
        }
    }
}

#[tokio::test]
async fn a_configuration_and_a_secret_may_come_by_a_pipe() {
    let (folder, account) = (tempfile::tempdir().expect("a temporary folder"), WeChat::secure().account());
    let [config, token] = ["config", "token"].map(|name| pipe(&folder, name));
    let mut writers = Vec::new();
    let text = account.replace("\"pamtest\"", &format!("{{ file = \"{token}\" }}"));
    for (pipe, text) in [(&config, text.as_str()), (&token, "pamtest\n")] {
        let mut writer = Command::new("sh");
        writer.args(["-c", "printf %s \"$1\" >\"$0\"", pipe, text]).stdin(Stdio::null());
        writers.push(Running::spawn(writer));
    }
    let output = check(Path::new(&config)).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.starts_with("account shop\n"), "{output:?}");
    for writer in writers {
        assert_eq!(writer.end().await, Some(0));
    }
}

#[tokio::test]
async fn a_pipe_without_a_writer_is_an_error_and_blocks_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (pipe, config) = (pipe(&folder, "token"), folder.path().join("config.toml"));
    let account = WeChat::secure().account().replace("\"pamtest\"", "{ file = \"token\" }");
    fs::write(&config, account).expect("the config can be written");
    let output = check(&config).await;
    assert_eq!(output.code, Some(78), "{output:?}");
    let expected = format!("accounts.shop.token: cannot read {pipe}: nothing came for 10 s");
    assert!(output.stderr.contains(&expected), "{}", output.stderr);
}

async fn check(config: &Path) -> Finished {
    within(wxrelay(["check", "-c"]), config).await
}

async fn within(command: Command, config: &Path) -> Finished {
    let mut shell = Command::new("sh");
    shell.args(["-c", WITHIN_2_GB]).arg(command.get_program()).args(command.get_args()).arg(config);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    run(shell).await
}

fn pipe(folder: &TempDir, name: &str) -> String {
    let path = folder.path().join(name);
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&path).status().expect("mkfifo is there").success());
    path.display().to_string()
}
