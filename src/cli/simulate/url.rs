//! A server URL (服务器地址) as WeChat's console accepts it: http or https. Redirects are not followed.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use http::uri::{PathAndQuery, Scheme};

/// The URL that pushes are sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    uri: Uri,
    https: bool,
    host: String,
    port: u16,
}

/// Why a text is not a server URL.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ServerUrlError {
    #[error("not a URL, expected one like http://127.0.0.1:8080/wechat/events")]
    Malformed,
    #[error("a server URL starts with http:// or https://")]
    Scheme,
    #[error("a server URL holds no user name or password")]
    UserInfo,
}

impl ServerUrl {
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// The host to connect to; an IPv6 address has no brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The value of the `Host` header.
    pub fn authority(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }

    /// The target of the request line: the URL's path and its own query, then `query`.
    pub fn request_target(&self, query: &str) -> String {
        let own = self.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let joint = match query {
            "" => "",
            _ if own.contains('?') => "&",
            _ => "?",
        };
        format!("{own}{joint}{query}")
    }
}

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, ServerUrlError> {
        let uri: Uri = text.parse().map_err(|_| ServerUrlError::Malformed)?;
        let https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(ServerUrlError::Scheme),
        };
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(ServerUrlError::UserInfo);
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(ServerUrlError::Malformed)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { https, host, port, uri })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ServerUrl {
        text.parse().unwrap()
    }

    #[test]
    fn ports_follow_the_scheme() {
        assert_eq!((url("http://h").port(), url("https://h").port(), url("https://h:8443/x").port()), (80, 443, 8443));
        assert_eq!(url("http://[::1]:80/").host(), "::1");
        assert_eq!(url("http://[::1]:80/").authority(), "[::1]:80");
    }

    #[test]
    fn the_push_query_goes_behind_the_urls_own() {
        assert_eq!(url("http://h/wx").request_target("a=1"), "/wx?a=1");
        assert_eq!(url("http://h/wx?id=7").request_target("a=1"), "/wx?id=7&a=1");
        assert_eq!(url("http://h").request_target("a=1"), "/?a=1");
        assert_eq!(url("http://h/wx").request_target(""), "/wx");
    }

    #[test]
    fn other_texts_are_refused() {
        assert_eq!("ftp://h/".parse::<ServerUrl>(), Err(ServerUrlError::Scheme));
        assert_eq!("/wechat/events".parse::<ServerUrl>(), Err(ServerUrlError::Scheme));
        assert_eq!("http://u:p@h/".parse::<ServerUrl>(), Err(ServerUrlError::UserInfo));
        assert_eq!("http://".parse::<ServerUrl>(), Err(ServerUrlError::Malformed));
    }
}
