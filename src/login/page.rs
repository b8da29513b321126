//! The page for a person whose login stops here. Static: nothing of the request is in it.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;

/// The page's style. Its hash in [`POLICY`] is checked by a test.
const STYLE: &str = "body{font:1.1rem/1.6 system-ui,sans-serif;margin:15vh auto;max-width:32rem;padding:0 1rem}";

/// No script, no image, no frame: only [`STYLE`].
const POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      style-src 'sha256-6hxrzwHi3FShgbdqlE/El/TcrJFn+9kh4m9YbqQLECE='";

/// The response with the page. It links to `home`, a URL of the configuration.
pub(super) fn page(status: StatusCode, home: Option<&str>) -> Response<Full<Bytes>> {
    let link = home.map(|home| {
        let home = escape(home);
        format!("<p><a href=\"{home}\" rel=\"noreferrer\">{home}</a></p>")
    });
    let page = format!(
        "<!doctype html><html lang=\"zh-CN\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>微信登录 / WeChat login</title>\
         <style>{STYLE}</style><p>这里只是微信登录的中转。请回到原网站重新登录。</p>\
         <p lang=\"en\">This is only a stop of a WeChat login. Please go back to the site and log in again.</p>{}</html>\n",
        link.unwrap_or_default()
    );
    let mut response = Response::new(Full::from(page));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    super::keep_private(headers);
    response
}

/// The configuration allows no quotes and angle brackets in a URL, but `&`.
fn escape(url: &str) -> String {
    url.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn the_policy_allows_the_page_s_own_style() {
        let hash = STANDARD.encode(Sha256::digest(STYLE));
        assert!(POLICY.contains(&format!("'sha256-{hash}'")), "style-src 'sha256-{hash}'");
    }

    #[test]
    fn the_link_is_escaped() {
        assert_eq!(escape("https://a.example/?a=1&b=\"<>"), "https://a.example/?a=1&amp;b=&quot;&lt;&gt;");
    }
}
