//! What commands make of their arguments: words and names that do not exist, dates, and the help for them.

use std::fs;

use crate::support::command::{free_address, run, wxrelay};
use crate::support::http;
use crate::support::program::is_missing;
use crate::support::relay::{Relay, Setup};
use crate::support::target::Target;
use crate::support::wechat::{WeChat, text};

async fn relay() -> (Relay, Target) {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let config = wechat.account() + &crm.config("crm", "") + &crm.config("bot", "");
    let relay = Setup::new(config).admin_at(free_address()).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    relay.audited("delivered", 2).await;
    (relay, crm)
}

#[tokio::test]
async fn a_word_of_another_program_leads_to_ours() {
    for (theirs, ours) in
        [("validate", "check"), ("logs", "events tail"), ("tail", "events tail"), ("list", "events ls")]
    {
        let refused = run(wxrelay([theirs])).await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains(&format!("that is `wxrelay {ours}`")), "{refused:?}");
    }
    let (relay, _crm) = relay().await;
    for command in ["events", "targets", "dead"] {
        let [list, ls] = [relay.run(&[command, "list"]).await, relay.run(&[command, "ls"]).await];
        assert_eq!((list.code, &list.stdout), (Some(0), &ls.stdout), "{command}: {list:?}");
    }
}

#[tokio::test]
async fn a_filter_with_an_unknown_name_lists_those_that_exist() {
    let (mut relay, _crm) = relay().await;
    let admin = format!("http://{}", relay.admin);
    for runs in [true, false] {
        for (args, listed) in [
            (&["events", "ls", "--target", "crn"][..], "there is no target `crn`; expected one of: bot, crm"),
            (&["events", "ls", "--account", "shup"], "there is no account `shup`; expected one of: shop"),
            (&["dead", "ls", "--target", "crn"], "expected one of: bot, crm"),
            (&["events", "replay", "--target", "crn", "--yes"], "expected one of: bot, crm"),
            (&["events", "tail", "--target", "crn"], "expected one of: bot, crm"),
            (&["events", "tail", "--account", "shup"], "expected one of: shop"),
        ] {
            if !runs && args[1] == "tail" {
                continue;
            }
            let mut all = vec![relay.run(args).await];
            if runs {
                all.push(relay.run(&[args, &["--admin", &admin]].concat()).await);
            }
            for refused in all {
                assert!(refused.code == Some(2) && refused.stderr.contains(listed), "{args:?}: {refused:?}");
            }
        }
        let none = relay.run(&["events", "ls", "--target", "crm", "--state", "dead"]).await;
        assert_eq!((none.code, none.stderr.as_str()), (Some(0), "no such event\n"), "a known name finds nothing");
        if runs {
            relay.stop().await;
        }
    }
}

#[tokio::test]
async fn a_date_needs_no_time_and_is_local() {
    let (relay, _crm) = relay().await;
    let found = async |args: &[&str], zone: &str| {
        let mut command = wxrelay(["events", "ls", "--json", "-c"]);
        command.arg(relay.config()).args(args).env("TZ", zone);
        let listed = run(command).await;
        assert_eq!(listed.code, Some(0), "{args:?}: {listed:?}");
        listed.stdout.lines().count()
    };
    assert_eq!(found(&["--since", "2026-01-01"], "UTC").await, 1);
    assert_eq!(found(&["--until", "2026-01-01"], "UTC").await, 0);
    assert_eq!(found(&["--since", "2026-01-01 08:30"], "UTC").await, 1);
    // The local time of zones 14 hours before and after UTC, which is another one in UTC.
    let now = jiff::Timestamp::now();
    for (zone, hours) in [("EARLY-14", 14), ("LATE14", -14)] {
        let local = |minutes: i64| {
            let moment = now.as_second() + hours * 3600 + minutes * 60;
            let time = jiff::Timestamp::from_second(moment).expect("a time").to_string();
            time.trim_end_matches('Z').to_owned()
        };
        assert_eq!(found(&["--since", &local(-5), "--until", &local(5)], zone).await, 1, "{zone}");
        assert_eq!(found(&["--since", &local(-5), "--until", &local(5), "--utc"], zone).await, 0, "{zone}");
    }
    let refused = relay.run(&["events", "ls", "--since", "yesterday"]).await;
    assert!(refused.code == Some(2) && refused.stderr.contains("2026-11-20"), "{refused:?}");
}

#[tokio::test]
async fn a_push_to_an_unknown_path_is_in_the_log_at_debug_without_its_query() {
    let (relay, _crm) = relay().await;
    let long = "a".repeat(300);
    let target = format!("/wrong/%1b[2J/{long}?signature=secret-of-the-query");
    let request = format!("POST {target} HTTP/1.1\r\nHost: relay.test\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(http::exchange(&relay.push, request.as_bytes()).await.status, 404);
    let line = relay.log("the path", |line| line["message"] == "push to an unknown path").await;
    let path = line["path"].as_str().expect("a path");
    assert!(path.starts_with("/wrong/") && path.len() == 128, "{line}");
    assert!(!line.to_string().contains("secret"), "{line}");
    assert_eq!(line["level"], "DEBUG");
}

#[tokio::test]
async fn completions_know_the_targets_and_accounts() {
    let (relay, _crm) = relay().await;
    let names = async |kind: &str, by_address: bool| {
        let mut command = wxrelay(["completions", "--names", kind]);
        if by_address {
            command.env("WXRELAY_ADMIN", format!("http://{}", relay.admin));
        } else {
            command.env("WXRELAY_CONFIG", relay.config());
        }
        run(command).await.stdout
    };
    for by_address in [true, false] {
        assert_eq!(names("targets", by_address).await, "bot\ncrm\n");
        assert_eq!(names("accounts", by_address).await, "shop\n");
    }
    if is_missing("bash") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("wxrelay.bash");
    fs::write(&script, run(wxrelay(["completions", "bash"])).await.stdout).expect("it can be written");
    let program = env!("CARGO_BIN_EXE_wxrelay").trim_end_matches("/wxrelay");
    for (words, completed) in [
        ("wxrelay targets pause ''", "bot crm"),
        ("wxrelay events ls --target c", "crm"),
        ("wxrelay events ls --account ''", "shop"),
        ("wxrelay targets pau", "pause"),
    ] {
        let count = words.split(' ').count() - 1;
        let code = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD={count}; _wxrelay_names wxrelay \"${{COMP_WORDS[COMP_CWORD]}}\" \
             \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[*]}}\"",
            script.display()
        );
        let mut bash = std::process::Command::new("bash");
        bash.args(["-c", &code]).env("WXRELAY_CONFIG", relay.config());
        bash.env("PATH", format!("{program}:{}", std::env::var("PATH").unwrap_or_default()));
        let shown = run(bash).await;
        assert_eq!(shown.stdout.trim(), completed, "{words}: {shown:?}");
    }
}

#[tokio::test]
async fn manual_pages_have_examples_files_environment_and_exit_status() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = run(wxrelay(["man", "--dir", &folder.path().display().to_string()])).await;
    assert_eq!(written.code, Some(0), "{written:?}");
    let mut pages = 0;
    for entry in fs::read_dir(folder.path()).expect("a folder") {
        let path = entry.expect("a page").path();
        let page = fs::read_to_string(&path).expect("it can be read");
        for section in ["EXAMPLES", "FILES", "ENVIRONMENT", "EXIT STATUS"] {
            assert!(page.contains(&format!(".SH \"{section}\"\n")), "{}: {section}", path.display());
        }
        let (_, examples) = page.split_once(".SH \"EXAMPLES\"\n.nf\n").expect("examples");
        assert!(examples.starts_with("wxrelay ") || examples.starts_with("WXRELAY"), "{}", path.display());
        assert!(!examples.lines().any(|line| line.starts_with("./")), "{}: no request of roff", path.display());
        pages += 1;
    }
    assert!(pages > 30, "only {pages} pages");
}
