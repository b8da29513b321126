//! The answers of a login and of a verification file, header by header.

use http_body_util::BodyExt as _;

use super::*;

fn login(to: &str) -> Login {
    let pass = DEFAULT_PASS.map(str::to_owned).to_vec();
    Login {
        name: "site".into(),
        path: "/login/site".into(),
        to: to.into(),
        pass,
        home: Some("https://a.example/?x=1&y=2".into()),
    }
}

fn serve(logins: Vec<Login>, verify_files: Vec<VerifyFile>) -> (Logins, Arc<Metrics>) {
    let (served, metrics) = (Logins::default(), Metrics::new());
    served.apply(&Settings { logins, verify_files }, &metrics);
    (served, metrics)
}

fn ask(logins: &Logins, method: Method, path_and_query: &str) -> Option<Response<Full<Bytes>>> {
    let request = Request::builder().method(method).uri(path_and_query).header(header::HOST, "login.example.com");
    logins.answer(&request.body(()).unwrap(), None)
}

fn location(to: &str, query: &str) -> Option<String> {
    let (logins, _) = serve(vec![login(to)], Vec::new());
    let response = ask(&logins, Method::GET, &format!("/login/site?{query}"))?;
    Some(response.headers().get(header::LOCATION)?.to_str().unwrap().to_owned())
}

#[expect(clippy::disallowed_methods, reason = "our own answer")]
async fn text(response: Response<Full<Bytes>>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[test]
fn the_pairs_go_behind_the_query_of_the_url() {
    let cases = [
        ("https://a.example/cb", "https://a.example/cb?code=c&state=s"),
        ("https://a.example/cb?", "https://a.example/cb?code=c&state=s"),
        ("https://a.example/cb?x=1", "https://a.example/cb?x=1&code=c&state=s"),
        ("https://a.example/cb?x=1&", "https://a.example/cb?x=1&code=c&state=s"),
    ];
    for (to, expected) in cases {
        assert_eq!(location(to, "code=c&state=s&other=o").as_deref(), Some(expected));
    }
}

#[test]
fn a_redirect_is_a_303_that_nobody_keeps() {
    let (logins, metrics) = serve(vec![login("https://a.example/cb")], Vec::new());
    let response = ask(&logins, Method::GET, "/login/site/?code=c").unwrap();
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    assert_eq!(response.headers()[header::REFERRER_POLICY], "no-referrer");
    assert!(!response.headers().contains_key(header::SET_COOKIE));
    let refused = ask(&logins, Method::GET, "/login/site?state=s").unwrap();
    assert_eq!(refused.status(), StatusCode::SEE_OTHER);
    let text = metrics.render();
    for line in [
        "wxrelay_logins_total{login=\"site\",result=\"malformed\"} 0",
        "wxrelay_logins_total{login=\"site\",result=\"passed\"} 1",
        "wxrelay_logins_total{login=\"site\",result=\"refused_by_user\"} 1",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
}

#[tokio::test]
async fn everything_else_gets_a_page_that_shows_nothing_of_the_request() {
    let (logins, _) = serve(vec![login("https://a.example/cb")], Vec::new());
    for (method, query, status) in [
        (Method::GET, "", StatusCode::BAD_REQUEST),
        (Method::GET, "?code=secret&code=secret", StatusCode::BAD_REQUEST),
        (Method::HEAD, "?code=secret", StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "?code=secret", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let response = ask(&logins, method.clone(), &format!("/login/site{query}")).unwrap();
        assert_eq!(response.status(), status, "{method} {query}");
        assert_eq!(response.headers().contains_key(header::ALLOW), status == StatusCode::METHOD_NOT_ALLOWED);
        let page = text(response).await;
        assert!(!page.contains("secret"), "{page}");
        assert!(page.contains("请回到原网站重新登录") && page.contains("log in again"), "{page}");
        assert!(page.contains("href=\"https://a.example/?x=1&amp;y=2\""), "{page}");
    }
}

#[tokio::test]
async fn a_removed_login_keeps_its_error_page() {
    let (logins, metrics) = serve(vec![login("https://a.example/cb")], Vec::new());
    for _ in 0..2 {
        logins.apply(&Settings::default(), &metrics);
        let response = ask(&logins, Method::GET, "/login/site?code=c").unwrap();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert!(text(response).await.contains("重新登录"));
    }
    assert!(ask(&logins, Method::GET, "/other").is_none());
}

#[tokio::test]
async fn a_verification_file_is_served_byte_for_byte() {
    let file = VerifyFile { name: "MP_verify_Ab1.txt".into(), content: Bytes::from_static(b"Ab1\r\n") };
    let (logins, _) = serve(Vec::new(), vec![file]);
    let response = ask(&logins, Method::GET, "/MP_verify_Ab1.txt?x").unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    assert_eq!(text(response).await, "Ab1\r\n");
    assert_eq!(ask(&logins, Method::POST, "/MP_verify_Ab1.txt").unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(ask(&logins, Method::GET, "/mp_verify_ab1.txt").is_none());
}
