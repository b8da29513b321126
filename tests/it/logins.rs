//! Login callbacks and verification files, as a browser and WeChat's console see them.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::command::{run, wxrelay};
use crate::support::http::{self, Answer, exchange};
use crate::support::relay::{Relay, Setup};
use crate::support::wechat::{Mode, PATH, WeChat, text};

const LOGINS: &str = "[logins.site]\npath = \"/login/site\"\nto = \"https://www.example.com/cb?x=1\"\n\
                      home = \"https://www.example.com/\"\n";

fn setup(logins: &str) -> Setup {
    Setup::new(format!("{}{logins}", WeChat::new(Mode::Plaintext).account()))
}

async fn ask(relay: &Relay, method: &str, target: &str, version: &str) -> Answer {
    exchange(&relay.push, format!("{method} {target} HTTP/{version}\r\nHost: login.example.com\r\n\r\n").as_bytes())
        .await
}

/// The status and the Location of a GET.
async fn get(relay: &Relay, target: &str) -> (u16, Option<String>) {
    let answer = ask(relay, "GET", target, "1.1").await;
    (answer.status, answer.header("location").map(str::to_owned))
}

#[tokio::test]
async fn a_callback_goes_to_the_configured_url_with_code_and_state_alone() {
    let relay = setup(LOGINS).start().await;
    let to = |pairs: &str| (303, Some(format!("https://www.example.com/cb?x=1&{pairs}")));
    let refused = (400, None);
    let long = "s".repeat(8 * 1024);
    let cases = [
        ("code=c&state=s", to("code=c&state=s")),
        ("state=s&code=c&redirect_uri=https://evil.example&x=2", to("state=s&code=c")),
        ("state=s", to("state=s")),
        ("", refused.clone()),
        ("code=c&code=d", refused.clone()),
        ("state=s&state=s", refused.clone()),
        ("c%6fde=c", refused.clone()),
        ("code=c&state=%0d%0aSet-Cookie:a", refused.clone()),
        (&format!("code=c&state={long}"), refused.clone()),
    ];
    for version in ["1.0", "1.1"] {
        for (query, expected) in &cases {
            let answer = ask(&relay, "GET", &format!("/login/site?{query}"), version).await;
            let found = (answer.status, answer.header("location").map(str::to_owned));
            assert_eq!(&found, expected, "{query:.60} by HTTP/{version}");
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(answer.header("set-cookie"), None);
        }
    }
    for method in ["POST", "PUT"] {
        let answer = ask(&relay, method, "/login/site?code=c", "1.1").await;
        assert_eq!((answer.status, answer.header("location"), answer.header("allow")), (405, None, Some("GET")));
    }
    // A preview of a link must not walk on.
    let mut stream = TcpStream::connect(&relay.push).await.expect("the relay listens");
    let head = b"HEAD /login/site?code=c HTTP/1.1\r\nHost: login.example.com\r\nConnection: close\r\n\r\n";
    stream.write_all(head).await.expect("the request can be sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let answer = answer.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 405 ") && answer.contains("\r\nallow: get\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n") && !answer.contains("location"), "{answer}");
}

#[tokio::test]
async fn a_request_that_names_no_host_or_two_is_refused() {
    const NAME: &str = "MP_verify_Ab1.txt";
    let relay = setup(LOGINS).server(&format!("verify_files = [\"{NAME}\"]")).file(NAME, "Ab1").start().await;
    for target in ["/login/site?code=c", "/MP_verify_Ab1.txt"] {
        for hosts in ["", "Host: a.example\r\nHost: b.example\r\n", "Host: user@a.example\r\n"] {
            let answer = exchange(&relay.push, format!("GET {target} HTTP/1.1\r\n{hosts}\r\n").as_bytes()).await;
            assert_eq!((answer.status, answer.header("location")), (400, None), "{target} {hosts}");
        }
    }
}

#[tokio::test]
async fn no_code_gets_into_log_or_metrics() {
    let relay = setup(LOGINS).start().await;
    for query in ["code=0a1b2c3d4e&state=f00dface", "code=0a1b2c3d4e&code=0a1b2c3d4e", "f00dface"] {
        get(&relay, &format!("/login/site?{query}")).await;
    }
    let count = async |result| relay.metric("wxrelay_logins_total", &[("login", "site"), ("result", result)]).await;
    assert_eq!((count("passed").await, count("refused_by_user").await, count("malformed").await), (1.0, 0.0, 2.0));
    relay.log("the last login", |line| line["message"] == "login" && line["result"] == "malformed").await;
    let shown = format!("{:?}{}", relay.lines(), relay.get("/metrics").await.text());
    assert!(!shown.contains("0a1b2c3d4e") && !shown.contains("f00dface"), "{shown}");
}

#[tokio::test]
async fn a_reload_replaces_logins() {
    let mut relay = setup(LOGINS).start().await;
    let moved = LOGINS.replace("/login/site", "/login/new").replace("/cb?x=1", "/moved");
    relay.configure(format!("{}{moved}", WeChat::new(Mode::Plaintext).account()));
    assert_eq!(http::post(&relay.admin, "/api/reload").await.status, 200);
    let location = Some("https://www.example.com/moved?code=c".to_owned());
    assert_eq!(get(&relay, "/login/new?code=c").await, (303, location));
    let removed = ask(&relay, "GET", "/login/site?code=c", "1.1").await;
    assert_eq!(removed.status, 404);
    assert!(removed.text().contains("请回到原网站重新登录"), "{}", removed.text());
}

#[tokio::test]
async fn a_verification_file_that_is_gone_at_a_reload_stays_served() {
    const NAME: &str = "MP_verify_Ab1.txt";
    let relay = setup("").server(&format!("verify_files = [\"{NAME}\"]")).file(NAME, "Ab1\n").start().await;
    let served = async || ask(&relay, "GET", &format!("/{NAME}"), "1.0").await;
    assert_eq!(served().await.text(), "Ab1\n");
    assert_eq!(served().await.header("content-type"), Some("text/plain; charset=utf-8"));

    let file = relay.config().with_file_name(NAME);
    std::fs::write(&file, "Ab2").expect("the file can be written");
    assert_eq!(http::post(&relay.admin, "/api/reload").await.status, 200);
    assert_eq!(served().await.text(), "Ab2");

    std::fs::remove_file(&file).expect("the file can be removed");
    let refused = http::post(&relay.admin, "/api/reload").await;
    assert!(refused.status >= 400 && refused.text().contains(NAME), "{}", refused.text());
    relay.log("the file that is missing", |line| line.to_string().contains(NAME)).await;
    assert_eq!(served().await.text(), "Ab2");
}

#[tokio::test]
async fn check_prints_what_to_enter_where() {
    const NAME: &str = "MP_verify_Ab1.txt";
    let relay = setup(LOGINS).server(&format!("verify_files = [\"{NAME}\"]")).file(NAME, "Ab1").start().await;
    let told = relay.run(&["check"]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    for part in [
        "login site\n  enter    redirect_uri = https://<callback domain>/login/site\n  to       https://www.example.com/cb?x=1\n",
        "授权回调域",
        "网页授权域名",
        "verification files\n  /MP_verify_Ab1.txt  3 bytes\n",
    ] {
        assert!(told.stdout.contains(part), "{part}: {}", told.stdout);
    }
    let json = relay.run(&["check", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["logins"][0]["to"], "https://www.example.com/cb?x=1");
    assert_eq!(json["verify_files"][0], "/MP_verify_Ab1.txt");
}

#[tokio::test]
async fn a_verification_file_that_is_none_is_refused_with_the_reason() {
    let long = "a".repeat(2048);
    for (name, text, reason) in [
        ("MP_verify_Ab1.txt", long.as_str(), "it is longer than 1 KiB"),
        ("MP_verify_Ab1.txt", "<script>alert(1)</script>", "it holds more than plain text"),
        ("MP_verify_Ab1.txt", "", "it is empty"),
        ("../MP_verify_Ab1.txt", "Ab1", "the name of a file beside this one"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = folder.path().join("config.toml");
        std::fs::write(folder.path().join("MP_verify_Ab1.txt"), text).expect("the file can be written");
        let server = format!("[server]\nverify_files = [\"{name}\"]\n");
        std::fs::write(&config, server + &WeChat::new(Mode::Plaintext).account()).expect("the config can be written");
        let mut command = wxrelay(["check", "-c"]);
        command.arg(&config);
        let told = run(command).await;
        assert_eq!(told.code, Some(78), "{told:?}");
        assert!(told.stderr.contains("server.verify_files[0]") && told.stderr.contains(reason), "{}", told.stderr);
    }
}

#[tokio::test]
async fn pushes_and_other_paths_are_untouched_by_logins() {
    let wechat = WeChat::new(Mode::Plaintext);
    let relay = setup(LOGINS).start().await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    for path in ["/", "/login", "/login/site2", "/login/site/x", "//login/site", "/Login/site", PATH] {
        let (status, location) = get(&relay, &format!("{path}?code=c&state=s")).await;
        assert!(status >= 400 && location.is_none(), "{path}: {status} {location:?}");
    }
}
