//! `[logins.NAME]` and `server.verify_files`: what the push listeners serve to browsers and to WeChat's console.

use std::io;
use std::net::IpAddr;

use bytes::Bytes;
use http::Uri;

use super::accounts;
use super::error::Problem;
use super::file;
use super::key_reader::KeyReader;
use super::value::{self, Parsed};
use crate::bounded_file;
use crate::login::{DEFAULT_PASS, Login, Settings, VerifyFile};
use crate::push::Account;
use crate::server::{self, Listen};

/// The most parameters that a login passes on.
const MAX_PASS: usize = 8;
/// The longest name of a passed parameter.
const MAX_PARAMETER: usize = 32;
/// The longest name of a verification file, without its extension.
const MAX_FILE_NAME: usize = 64;
/// The largest verification file. WeChat's have 16 or 32 bytes.
const MAX_FILE_SIZE: usize = 1024;

/// All logins and verification files without errors.
pub(super) fn settings(
    reader: &KeyReader<'_>,
    file: &file::ConfigFile,
    server: &server::Settings,
    accounts: &[Account],
) -> Settings {
    let verify_files = file.server.verify_files.as_ref().map_or(&[][..], |list| &list.0);
    let verify_files = self::verify_files(&reader.at("server").at("verify_files"), verify_files, accounts);
    let reader = reader.at("logins");
    let in_clear = |listen: &Listen| matches!(listen, Listen::Tcp(address) if !address.ip().is_loopback());
    if !file.logins.is_empty()
        && server.tls.is_empty()
        && server.trusted_proxies.is_empty()
        && server.listen.iter().any(in_clear)
    {
        reader.warn(format_args!(
            "neither server.tls nor server.trusted_proxies is set, so codes cross the network in clear"
        ));
    }
    let mut logins: Vec<Login> = Vec::new();
    for (name, section) in &file.logins {
        let reader = reader.at(name);
        let Some(login) = login(&reader, name, section) else { continue };
        check_path(&reader.at("path"), &login, &logins, accounts, &verify_files);
        if let Some(earlier) = logins.iter().find(|earlier| earlier.to == login.to) {
            reader.at("to").warn(format_args!("the same as logins.{}.to: one login is enough", earlier.name));
        }
        logins.push(login);
    }
    for login in &logins {
        let leads_back = |other: &Login| path_of(&login.to) == other.path;
        if logins.iter().any(leads_back) {
            let reader = reader.at(&login.name).at("to");
            reader.warn(format_args!(
                "ends in the path of a login: if its host is this relay's, the browser goes in a circle"
            ));
        }
    }
    Settings { logins, verify_files }
}

fn login(reader: &KeyReader<'_>, name: &str, section: &file::LoginSection) -> Option<Login> {
    accounts::check_name(reader, name);
    let expected = "the path of redirect_uri on your callback domain, such as \"/login/site\"";
    let path = reader.require("path", &section.path, expected, login_path);
    let expected = "the client's own callback URL, such as \"https://www.example.com/wechat/callback\"";
    let to = reader.require("to", &section.to, expected, browser_url);
    let home = reader.read("home", &section.home, browser_url);
    let pass = match &section.pass {
        None => DEFAULT_PASS.map(str::to_owned).to_vec(),
        Some(names) => passed(&reader.at("pass"), &names.0),
    };
    if let Some(to) = &to {
        check_query(&reader.at("to"), to, &pass);
    }
    Some(Login { name: name.into(), path: path?, to: to?, pass, home })
}

/// Reads the names of the parameters that are passed on.
fn passed(reader: &KeyReader<'_>, names: &[String]) -> Vec<String> {
    let sound = |name: &str| {
        (1..=MAX_PARAMETER).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let parse = |name: &str| if sound(name) { Ok(name.to_owned()) } else { Err("1 to 32 characters of a-z and `_`") };
    let passed: Vec<_> =
        names.iter().enumerate().filter_map(|(index, name)| reader.nth(index).parse(name, parse)).collect();
    let is_usable = passed.iter().any(|name| name == "code") && passed.iter().any(|name| name == "state");
    if names.len() > MAX_PASS || !is_usable {
        let expected = "\"code\", \"state\" and at most 6 others, or the key left out";
        reader.report(Problem::expected("parameters that a login cannot work with", expected));
    }
    passed
}

/// A parameter of WeChat must not meet one of the same name in the configured URL.
fn check_query(reader: &KeyReader<'_>, to: &str, pass: &[String]) {
    let query = to.split_once('?').map_or("", |(_, query)| query);
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    if query.split('&').map(name).any(|name| pass.contains(&name)) {
        let broken = "its query has a parameter that WeChat's login adds";
        reader.report(Problem::expected(broken, "a URL without `code`, `state` and the others of `pass`"));
    }
}

fn check_path(
    reader: &KeyReader<'_>,
    login: &Login,
    earlier: &[Login],
    accounts: &[Account],
    verify_files: &[VerifyFile],
) {
    let account = accounts.iter().find(|account| account.path == login.path);
    let account = account.map(|account| format!("accounts.{}", account.name));
    let other = earlier.iter().find(|other| other.path == login.path).map(|other| format!("logins.{}", other.name));
    let is_file = verify_files.iter().any(|file| login.path.strip_prefix('/') == Some(&file.name));
    let file = is_file.then(|| "server.verify_files".to_owned());
    if let Some(taken) = account.or(other).or(file) {
        reader.report(Problem::SamePath(taken));
    }
}

/// Reads the files of WeChat's console, which stand beside the configuration file.
fn verify_files(reader: &KeyReader<'_>, names: &[String], accounts: &[Account]) -> Vec<VerifyFile> {
    let mut files: Vec<VerifyFile> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let reader = reader.nth(index);
        let Some(name) = reader.parse(name, verify_file_name) else { continue };
        if files.iter().any(|file| file.name == name) {
            reader.report(Problem::expected("the same file as above", "each once"));
            continue;
        }
        let taken = |account: &&Account| account.path.strip_prefix('/') == Some(&name);
        if let Some(account) = accounts.iter().find(taken) {
            reader.report(Problem::SamePath(format!("accounts.{}", account.name)));
        }
        let path = reader.resolve(&name);
        let content = bounded_file::read(&path).map(|(bytes, _)| Bytes::copy_from_slice(&bytes));
        match content.and_then(check_content) {
            Ok(content) => files.push(VerifyFile { name, content }),
            Err(source) => reader.report(Problem::Unreadable { path, source }),
        }
    }
    files
}

fn verify_file_name(text: &str) -> Parsed<String> {
    let stem = text.strip_suffix(".txt").unwrap_or_default();
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let expected =
        "the name of a file beside this one, as WeChat's console gives it: A-Z, a-z, 0-9 and `_`, then `.txt`";
    if (1..=MAX_FILE_NAME).contains(&stem.len()) && stem.bytes().all(sound) {
        Ok(text.to_owned())
    } else {
        Err(expected)
    }
}

/// A browser must find nothing in a verification file: neither markup nor more than WeChat writes.
fn check_content(content: Bytes) -> io::Result<Bytes> {
    let broken = |reason| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    let allowed = |byte: &u8| byte.is_ascii_graphic() && !b"<>&".contains(byte) || b" \r\n".contains(byte);
    if content.is_empty() {
        broken("it is empty")
    } else if content.len() > MAX_FILE_SIZE {
        broken("it is longer than 1 KiB: download the file from WeChat's console again")
    } else if !content.iter().all(allowed) {
        broken("it holds more than plain text: download the file from WeChat's console again")
    } else {
        Ok(content)
    }
}

/// The path of a login, without a trailing slash. The root is for verification files.
fn login_path(text: &str) -> Parsed<String> {
    let path = value::account_path(text)?;
    if path.is_empty() { Err("a path with a name, such as \"/login/site\"") } else { Ok(path) }
}

/// A URL that a browser is sent to, in the form in which it is sent: https, or http to this machine.
fn browser_url(text: &str) -> Parsed<String> {
    let sound = |byte: u8| byte.is_ascii_graphic() && !b"\\<>\"'`{}|^".contains(&byte);
    if !text.bytes().all(sound) {
        return Err("a URL without blanks, quotes, brackets and backslashes, and with others percent-encoded");
    }
    let uri = value::url(text)?;
    if uri.host().is_some_and(|host| host.contains('%')) {
        return Err("a URL whose host is written without `%`");
    }
    if uri.scheme_str() != Some("https") && !is_loopback(&uri) {
        return Err("an https URL, since a code must not cross a network in clear; http only to localhost");
    }
    Ok(uri.to_string())
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// The path of a checked URL, as a login's path is written.
fn path_of(url: &str) -> String {
    url.parse::<Uri>().map(|uri| uri.path().trim_end_matches('/').to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_sent_to_https_or_to_this_machine() {
        let sound = [
            ("https://a.example", "https://a.example/"),
            ("https://a.example/cb?x=1", "https://a.example/cb?x=1"),
            ("https://a.example:8443/cb/", "https://a.example:8443/cb/"),
            ("http://127.0.0.1:8000/cb", "http://127.0.0.1:8000/cb"),
            ("http://[::1]/cb", "http://[::1]/cb"),
            ("http://localhost/cb", "http://localhost/cb"),
        ];
        for (text, url) in sound {
            assert_eq!(browser_url(text).as_deref(), Ok(url));
        }
        let broken = [
            "",
            "/cb",
            "//a.example/cb",
            "a.example/cb",
            "http://a.example/cb",
            "javascript:alert(1)",
            "data:text/html,x",
            "https://user@a.example/",
            "https://user:pw@a.example/",
            "https://a.example/#x",
            "https://a.example\\@b.example/",
            "https://a.example/\u{7}",
            "https://a.example/a b",
            "https://é.example/",
            "https://",
            "https://a.example:0/",
            "https://a.example:99999/",
            "ftp://a.example/",
            "https://a%2eexample/",
            "http://127.0.0.1.example/",
        ];
        for text in broken {
            assert!(browser_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_verification_file_has_the_name_and_content_of_one() {
        for name in ["MP_verify_AbCd1234.txt", "WW_verify_x.txt", "0123.txt"] {
            assert!(verify_file_name(name).is_ok(), "{name}");
        }
        let long = format!("{}.txt", "a".repeat(65));
        for name in ["", ".txt", "a.html", "a/b.txt", "../a.txt", "/a.txt", "a-b.txt", "a.txt.txt", &long] {
            assert!(verify_file_name(name).is_err(), "{name}");
        }
        let check = |content: &'static [u8]| check_content(Bytes::from_static(content)).is_ok();
        assert!(check(b"AbCd1234") && check(b"AbCd1234\r\n") && check(b"{\"a\":1}"));
        assert!(
            !check(b"") && !check(b"<script>") && !check(b"a\0") && !check("é".as_bytes()) && !check(&[b'a'; 1025])
        );
    }
}
