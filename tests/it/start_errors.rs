//! Starts that fail by something else than the configuration, and what `check` accepts or warns of.

use std::path::Path;

use crate::broken_setups::Files;
use crate::support::command::free_address;
use crate::support::relay::Setup;
use crate::support::wechat::WeChat;

#[tokio::test]
async fn check_changes_nothing_and_accepts_what_is_in_use() {
    let config = WeChat::secure().account();
    let relay = Setup::new(config).admin_at(free_address()).server("").start().await;
    let checked = relay.run(&["check"]).await;
    assert_eq!(checked.code, Some(0), "beside the running relay: {checked:?}");
    let files = Files::new();
    files.write("", "", "", "");
    assert_eq!(files.run("check").await.code, Some(0));
    assert!(!Path::new(&files.path("store")).exists(), "the store is not made by a check");
}

#[tokio::test]
async fn what_a_restart_may_fix_ends_with_another_code() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it has an address");
    let files = Files::new();
    files.write(&format!("listen = \"{address}\""), "", "", "");
    let printed = files.run("serve").await;
    assert_eq!(printed.code, Some(1), "an address in use: {printed:?}");
    let relay = Setup::new(WeChat::secure().account()).start().await;
    files.write("", "", &format!("path = \"{}\"", relay.store().display()), "");
    let printed = files.run("serve").await;
    assert_eq!(printed.code, Some(1), "a store in use: {printed:?}");
}

#[tokio::test]
async fn what_is_probably_a_mistake_is_warned_of() {
    let files = Files::new();
    let account = "[accounts.other]\npath = \"/wx/$APPID$/*\"\napp_id = \"gh_0123456789ab\"\ntoken = \"abc\"\nmode = \"plaintext\"\n";
    files.write("", "", "", account);
    let printed = files.run("check").await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    for warning in [
        "accounts.other.path: `/wx/$APPID$/*` is compared as it is",
        "accounts.other.app_id: `gh_0123456789ab` is not `wx` and 16 hex digits",
    ] {
        assert!(printed.stderr.contains(warning), "{warning}: {}", printed.stderr);
    }
}
