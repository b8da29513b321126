//! One HTTP/1.0 exchange over a fresh connection, byte for byte as WeChat makes it.
//!
//! Written on the bare socket on purpose: an HTTP client would add headers, keep the connection, and accept answers
//! that WeChat does not. Follows no redirect, decodes no chunks, sets no time limit (the client does).

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::either::Either;

use super::url::ServerUrl;

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// A connection by TLS or without. One type, as the code of an exchange is compiled for each.
pub(in crate::cli) type ClientStream = Either<TlsStream<TcpStream>, TcpStream>;

/// A full answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct RawResponse {
    pub(in crate::cli) status: u16,
    /// Names in lower case and trimmed values, in the order received.
    pub(in crate::cli) headers: Vec<(String, String)>,
    pub(in crate::cli) body: Vec<u8>,
}

impl RawResponse {
    /// The first header with that name, which must be in lower case.
    pub(in crate::cli) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Why there is no full answer. The texts contain their causes.
#[derive(Debug, thiserror::Error)]
pub enum Http10Error {
    /// The name does not resolve, or nothing listens there.
    #[error("can't connect ({0})")]
    Connect(io::Error),
    #[error("no TLS connection ({0})")]
    Tls(io::Error),
    #[error("no full answer within the 5 s that WeChat waits")]
    Timeout,
    /// The connection ended within the answer.
    #[error("the connection ended before the full answer ({0})")]
    Cut(io::Error),
    #[error("the answer is not HTTP/1")]
    NotHttp,
    #[error("the answer is larger than 1 MiB")]
    TooLarge,
}

impl Http10Error {
    /// How to fix the error, if that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Connect(_) => Some("is the server running, and is the URL right?"),
            Self::Tls(_) => Some("is the certificate valid for this host, and sent with its full chain?"),
            Self::Timeout | Self::Cut(_) | Self::NotHttp | Self::TooLarge => None,
        }
    }

    /// The error's name in summaries and JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Timeout => "timeout",
            Self::Cut(_) => "cut",
            Self::NotHttp => "not_http",
            Self::TooLarge => "too_large",
        }
    }
}

/// The GET of a URL verification.
pub(in crate::cli) fn get(url: &ServerUrl, query: &str) -> Vec<u8> {
    head("GET", url, query, "").into_bytes()
}

/// The POST of a push. `text/xml` for JSON bodies too: WeChat declines to say otherwise (wafer2-startup #104).
pub(super) fn post(url: &ServerUrl, query: &str, body: &str) -> Vec<u8> {
    let more = format!("Content-Type: text/xml\r\nContent-Length: {}\r\n", body.len());
    let mut request = head("POST", url, query, &more).into_bytes();
    request.extend_from_slice(body.as_bytes());
    request
}

fn head(method: &str, url: &ServerUrl, query: &str, more: &str) -> String {
    format!(
        "{method} {target} HTTP/1.0\r\nUser-Agent: Mozilla/4.0\r\nAccept: */*\r\nHost: {host}\r\nPragma: no-cache\r\n\
         {more}Connection: close\r\n\r\n",
        target = url.request_target(query),
        host = url.authority(),
    )
}

/// Sends `request` over a new connection and reads the answer; `tls` is for https URLs.
pub(super) async fn exchange(
    url: &ServerUrl,
    tls: Option<&TlsConnector>,
    request: &[u8],
) -> Result<RawResponse, Http10Error> {
    let tcp = TcpStream::connect((url.host(), url.port())).await.map_err(Http10Error::Connect)?;
    tcp.set_nodelay(true).map_err(Http10Error::Connect)?;
    let Some(tls) = tls else { return exchange_over(Either::Right(tcp), request).await };
    let name = ServerName::try_from(url.host().to_owned())
        .map_err(|error| Http10Error::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let stream = tls.connect(name, tcp).await.map_err(Http10Error::Tls)?;
    exchange_over(Either::Left(stream), request).await
}

/// Sends `request` over `stream` and reads the answer.
pub(in crate::cli) async fn exchange_over(
    mut stream: ClientStream,
    request: &[u8],
) -> Result<RawResponse, Http10Error> {
    // A server may refuse and close before it has read everything: its answer has precedence over our failed write.
    let unsent = match stream.write_all(request).await {
        Ok(()) => stream.flush().await.err(),
        Err(error) => Some(error),
    };
    let mut received = Vec::new();
    let end = loop {
        match stream.read_buf(&mut received).await {
            Ok(0) => break None,
            Ok(_) => {}
            Err(error) => break Some(error),
        }
        if let Some(response) = parse(&received, false)? {
            return Ok(response);
        }
        if received.len() > MAX_ANSWER {
            return Err(Http10Error::TooLarge);
        }
    };
    let cut = || Http10Error::Cut(unsent.or(end).unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
    parse(&received, true)?.ok_or_else(cut)
}

/// Parses an answer; `None` while it is incomplete. With `ended` nothing more arrives.
fn parse(received: &[u8], ended: bool) -> Result<Option<RawResponse>, Http10Error> {
    const START: &[u8] = b"HTTP/1.";
    if !received.starts_with(&START[..START.len().min(received.len())]) {
        return Err(Http10Error::NotHttp);
    }
    let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&received[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let status = status.filter(|code| (100..1000).contains(code)).ok_or(Http10Error::NotHttp)?;
    let header = |line: &str| {
        line.split_once(':').map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers = lines.map(header).collect::<Option<Vec<_>>>().ok_or(Http10Error::NotHttp)?;
    let mut response = RawResponse { status, headers, body: received[end + 4..].to_vec() };
    match response.header("content-length").map(str::parse::<usize>) {
        Some(Err(_)) => Err(Http10Error::NotHttp),
        Some(Ok(length)) if response.body.len() < length => Ok(None),
        Some(Ok(length)) => {
            response.body.truncate(length);
            Ok(Some(response))
        }
        None => Ok(ended.then_some(response)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_what_wechat_sends() {
        let url: ServerUrl = "http://wx.example.com/wechat/events".parse().unwrap();
        let request = String::from_utf8(post(&url, "signature=ab", "<xml/>")).unwrap();
        assert_eq!(
            request,
            "POST /wechat/events?signature=ab HTTP/1.0\r\nUser-Agent: Mozilla/4.0\r\nAccept: */*\r\n\
             Host: wx.example.com\r\nPragma: no-cache\r\nContent-Type: text/xml\r\nContent-Length: 6\r\n\
             Connection: close\r\n\r\n<xml/>"
        );
        let request = String::from_utf8(get(&url, "echostr=1")).unwrap();
        assert!(request.starts_with("GET /wechat/events?echostr=1 HTTP/1.0\r\n") && request.ends_with("close\r\n\r\n"));
        assert!(!request.contains("Content-"));
    }

    #[test]
    fn a_body_ends_where_content_length_says_or_with_the_connection() {
        let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok, and more";
        assert_eq!(parse(sized, false).unwrap().unwrap().body, b"ok");
        let unsized_ = b"HTTP/1.0 200 OK\r\n\r\nok";
        assert_eq!(parse(unsized_, false).unwrap(), None);
        assert_eq!(parse(unsized_, true).unwrap().unwrap().body, b"ok");
        let short = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok";
        assert_eq!(parse(short, true).unwrap(), None);
    }

    #[test]
    fn what_is_not_http_is_refused() {
        for bad in [
            &b"SSH-2.0-OpenSSH"[..],
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1 twelve OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        ] {
            assert!(matches!(parse(bad, true), Err(Http10Error::NotHttp)), "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_parser(bytes: Vec<u8>, ended: bool) {
            let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
            answer.extend(bytes);
            drop(parse(&answer, ended));
        }

        #[test]
        fn an_answer_in_pieces_is_the_answer(body in "[a-z]{0,40}", cut in 0_usize..90) {
            let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let piece = &whole.as_bytes()[..cut.min(whole.len())];
            let early = parse(piece, false).unwrap();
            prop_assert_eq!(early.is_some(), piece.len() == whole.len());
            prop_assert_eq!(parse(whole.as_bytes(), false).unwrap().unwrap().body, body.as_bytes());
        }
    }
}
