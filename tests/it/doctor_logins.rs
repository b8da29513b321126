//! `wxrelay doctor`: a login's callback as a browser sees it, verification files as WeChat's console does, the clients.

use std::fs;

use crate::doctor::Setup;
use crate::support::authority::{Authority, ReverseProxy, Upstream, server_for};
use crate::support::target::Target;
use crate::support::wechat::WeChat;

#[tokio::test]
async fn a_login_and_a_verification_file_are_checked_from_outside() {
    let (site, authority) = (Target::start().await, Authority::new());
    let login = format!("[logins.site]\npath = \"/login/site\"\nto = \"{}\"\n", site.url());
    let file = "verify_files = [\"MP_verify_Ab1.txt\"]";
    let setup = Setup::with_server(&(WeChat::secure().account() + &login), file);
    fs::write(setup.config.with_file_name("MP_verify_Ab1.txt"), "Ab1").expect("the file can be written");
    let _relay = setup.serve().await;
    let url = "https://localhost/login/site";
    let identity = authority.issue(&server_for("localhost"));
    let front = ReverseProxy::start(Some(&identity), Upstream::Relay(setup.push.clone())).await;
    let ca = authority.file();
    let args = ["--url", url, "--connect", &front.address, "--ca", ca.to_str().expect("a path of text")];
    let report = setup.doctor(&args).await;
    report.says("callback", "ok", &format!("303 to {}, with code and state", site.url()), "");
    report.says("file", "ok", "served, 3 bytes", "");
    report.says("login", "ok", " is open", "");
    assert_eq!((report.code, site.deliveries().len()), (Some(0), 0), "{}", report.text);

    let elsewhere = "303 See Other\r\nLocation: https://elsewhere.example/?code=wxrelayDoctor";
    for (head, text, remedy) in [
        ("404 Not Found", "nothing is at this path", "logins.site.path"),
        ("400 Bad Request", "the query did not arrive", "pass the query on"),
        ("200 OK", "answered 200, expected 303", "is it this relay"),
        (elsewhere, "answered 303 to https://elsewhere.example/, expected 303 to logins.site.to", "is it this relay"),
    ] {
        let front = ReverseProxy::start(None, Upstream::Page(head, |_| "Ab2".to_owned())).await;
        let report = setup.doctor(&["--url", "http://localhost/login/site", "--connect", &front.address]).await;
        report.says("callback", "failed", text, remedy);
        report.says("tls", "warning", "a code that crosses a network in clear", "use https");
        let found = if head == "200 OK" { "answered with other bytes" } else { "expected 200" };
        report.says("file", "failed", found, "reload");
        assert_eq!(report.code, Some(1), "{}", report.text);
    }
    drop(site);
    setup.doctor(&[]).await.says("login", "failed", "no connection", "logins.site.to");
}
