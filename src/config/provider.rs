//! Identity providers: their URLs, built from the identifiers that their consoles show, and what each expects.
//!
//! Invariant: an identifier stays within one path segment, whatever its characters. The URLs are as secret as the
//! identifiers, since nothing else protects those endpoints: no message quotes them.

use std::sync::Arc;

use http::Uri;
use http::uri::Authority;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::error::Problem;
use super::file::{Scalar, SecretSource, TargetSection};
use super::key_reader::KeyReader;
use super::value::{self, Parsed};
use crate::deliver::{AnswerPatterns, AnswerRules, Format};
use crate::route::{Match, Pattern, Patterns, ReplyRule, Route, When, follows_and_scans};
use crate::wechat::Mode;

/// The characters that are percent-encoded in a path segment: all except RFC 3986's `unreserved`.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A known identity provider.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ProviderPreset {
    /// <https://docs.authing.cn>: connections of kind WeChat official account, Mode 2.
    Authing,
    /// Authing's international product.
    GenAuth,
    /// <https://www.bamboocloud.cn>
    BambooCloud,
    /// <https://github.com/casdoor/casdoor>, `controllers/auth.go`, `HandleOfficialAccountEvent`: a plaintext push whose
    /// key is the provider's own name; errors come with status 200.
    Casdoor,
    /// <https://github.com/songquanpeng/wechat-server>, `controller/wechat.go`: a plaintext push; answers the text
    /// [`CODE_WORD`] with a code for the person to type in.
    WechatServer,
}

/// The text upon which wechat-server sends a code.
const CODE_WORD: &str = "验证码";

/// Where a target is, and what is preset for it.
pub(super) struct Endpoint {
    pub(super) url: Uri,
    pub(super) format: Format,
    /// The mode of a `wechat` target; the account's own if there is none.
    pub(super) mode: Option<Mode>,
    /// Whether the key of a follow is the scene alone.
    pub(super) bare_scene: bool,
    /// What the text of its answers means, where the target's own keys do not say so.
    pub(super) answers: AnswerRules,
}

/// What WeChat would accept as an answer, by its beginning. Both programs report an error with status 200, in JSON, and
/// an HTML page means that the address is wrong.
const ANSWERS_OF_HANDLERS: [&str; 3] = ["", "success", r"re:^(<\?xml[^>]*>\s*)?<xml[\s>]"];

/// A target's URL and what goes with it, from `url` or from `provider` and its keys.
pub(super) fn endpoint(reader: &KeyReader<'_>, target: &TargetSection) -> Option<Endpoint> {
    let Some(name) = &target.provider else {
        refuse_keys(reader, target, &[], "only valid together with `provider`");
        if target.url.is_none() {
            reader.at("url").report(Problem::Missing("an http or https URL, or a `provider`"));
        }
        let url = reader.read_secret_text("url", &target.url, value::url)?;
        return Some(Endpoint::new(url, Format::Raw));
    };
    if target.url.is_some() {
        reader.at("url").report(Problem::expected("`url` and `provider` exclude each other", "only one of them"));
    }
    let provider = reader.at("provider").parse(&name.0, parse)?;
    let url = match provider {
        ProviderPreset::Authing => social(reader, target, "https://core.authing.cn"),
        ProviderPreset::GenAuth => social(reader, target, "https://core.genauth.ai"),
        ProviderPreset::BambooCloud => bamboocloud(reader, target),
        ProviderPreset::Casdoor => casdoor(reader, target),
        ProviderPreset::WechatServer => wechat_server(reader, target),
    };
    Some(match provider {
        ProviderPreset::Authing | ProviderPreset::GenAuth => Endpoint::new(url?, Format::AuthingJson),
        ProviderPreset::BambooCloud => Endpoint::new(url?, Format::Raw),
        ProviderPreset::Casdoor => Endpoint { bare_scene: true, ..Endpoint::plaintext(url?) },
        ProviderPreset::WechatServer => Endpoint::plaintext(url?),
    })
}

impl Endpoint {
    fn new(url: Uri, format: Format) -> Self {
        Self { url, format, mode: None, bare_scene: false, answers: AnswerRules::default() }
    }

    /// A program that gets plaintext pushes.
    fn plaintext(url: Uri) -> Self {
        let texts = ANSWERS_OF_HANDLERS.iter().filter_map(|text| Pattern::parse(text, false).ok()).collect();
        let delivered_if = Some(AnswerPatterns { texts: Patterns(texts), json: false });
        let answers = AnswerRules { delivered_if, ..AnswerRules::default() };
        Self { mode: Some(Mode::Plaintext), answers, ..Self::new(url, Format::Wechat) }
    }
}

/// The route of a provider that takes other events than follows and scans, for accounts without routes.
pub(super) fn own_route(name: &str, target: &TargetSection) -> Option<Route> {
    let exact = |text: &str, case_blind| Some(Patterns(vec![Pattern::exact(text, case_blind)]));
    let (when, replies) = match parse(&target.provider.as_ref()?.0).ok()? {
        ProviderPreset::Casdoor => {
            let scene = exact(target.provider_id.as_ref()?.0.trim(), false);
            (Match { event: Some(follows_and_scans()), scene, ..Match::default() }, false)
        }
        ProviderPreset::WechatServer => {
            (Match { msg_type: exact("text", true), content: exact(CODE_WORD, false), ..Match::default() }, true)
        }
        ProviderPreset::Authing | ProviderPreset::GenAuth | ProviderPreset::BambooCloud => return None,
    };
    let to: Vec<Arc<str>> = vec![name.into()];
    let reply = replies.then(|| ReplyRule { asked: to.clone(), fixed: None });
    Some(Route { when: When::Match(when), to, reply })
}

/// Warns of a route that leads to a provider, but not with what it takes.
pub(super) fn check_route(reader: &KeyReader<'_>, target: &TargetSection, route: &Route) {
    let Some(Ok(provider)) = target.provider.as_ref().map(|name| parse(&name.0)) else { return };
    match (provider, &route.when) {
        (ProviderPreset::Casdoor, When::Match(Match { scene: Some(scene), .. })) if takes_only(scene, target) => {}
        (ProviderPreset::Casdoor, _) => reader.warn(format_args!(
            "Casdoor refuses every event but scans of its own codes; add scene = the target's provider_id to `match`"
        )),
        (ProviderPreset::WechatServer, _) if route.reply.is_none() => reader.warn(format_args!(
            "wechat-server sends its code as a reply, which this route does not ask for; name the target in `reply`"
        )),
        _ => {}
    }
}

/// Whether these are the scenes of Casdoor's own codes.
fn takes_only(scene: &Patterns, target: &TargetSection) -> bool {
    let own = target.provider_id.as_ref().map(|id| id.0.trim());
    scene.0.iter().all(|pattern| pattern.exact_text().is_some() && pattern.exact_text() == own)
}

fn parse(name: &str) -> Parsed<ProviderPreset> {
    match name {
        "authing" => Ok(ProviderPreset::Authing),
        "genauth" => Ok(ProviderPreset::GenAuth),
        "bamboocloud" => Ok(ProviderPreset::BambooCloud),
        "casdoor" => Ok(ProviderPreset::Casdoor),
        "wechat-server" => Ok(ProviderPreset::WechatServer),
        _ => Err("\"authing\", \"genauth\", \"bamboocloud\", \"casdoor\" or \"wechat-server\""),
    }
}

/// `{base_url}/connections/social/{identifier}/{user_pool_id}/events`
fn social(reader: &KeyReader<'_>, target: &TargetSection, default: &'static str) -> Option<Uri> {
    refuse_keys(reader, target, &["base_url", "identifier", "user_pool_id"], "not a key of this `provider`");
    let base = match &target.base_url {
        Some(_) => reader.read_secret_text("base_url", &target.base_url, base_url),
        None => Some(default.to_owned()),
    };
    let identifier = identifier(reader, "identifier", &target.identifier, "the connection's identifier");
    let pool = secret_identifier(reader, "user_pool_id", &target.user_pool_id, "the ID of the user pool");
    let (base, identifier, pool) = (base?, identifier?, pool?);
    let url = format!("{base}/connections/social/{identifier}/{pool}/events");
    url.parse().map_err(|_| reader.report(Problem::Secret("identifiers that make a URL"))).ok()
}

/// `https://{domain}/api/v1/callback/wechatmpqr/{idp_id}`
fn bamboocloud(reader: &KeyReader<'_>, target: &TargetSection) -> Option<Uri> {
    refuse_keys(reader, target, &["domain", "idp_id"], "not a key of this `provider`");
    if target.domain.is_none() {
        reader.at("domain").report(Problem::Missing("the tenant's domain"));
    }
    let domain = reader.read_secret_text("domain", &target.domain, domain);
    let idp = secret_identifier(reader, "idp_id", &target.idp_id, "the ID of the identity provider");
    let url = format!("https://{}/api/v1/callback/wechatmpqr/{}", domain?, idp?);
    url.parse().map_err(|_| reader.report(Problem::Secret("identifiers that make a URL"))).ok()
}

/// `{base_url}/api/webhook`
fn casdoor(reader: &KeyReader<'_>, target: &TargetSection) -> Option<Uri> {
    refuse_keys(reader, target, &["base_url", "provider_id"], "not a key of this `provider`");
    let expected = "the provider's name in Casdoor with its owner, such as \"admin/provider_wechat\"";
    let provider_id = |text: &str| if text.trim().is_empty() { Err(expected) } else { Ok(()) };
    reader.require("provider_id", &target.provider_id, expected, provider_id);
    own_server(reader, target, "api/webhook")
}

/// `{base_url}/api/wechat`
fn wechat_server(reader: &KeyReader<'_>, target: &TargetSection) -> Option<Uri> {
    refuse_keys(reader, target, &["base_url"], "not a key of this `provider`");
    own_server(reader, target, "api/wechat")
}

/// The URL of a program that the operator runs, and that shares a token with the relay.
fn own_server(reader: &KeyReader<'_>, target: &TargetSection, path: &str) -> Option<Uri> {
    if target.base_url.is_none() {
        reader.at("base_url").report(Problem::Missing("the address of your server, such as \"http://127.0.0.1:8000\""));
    }
    if target.token.is_none() {
        reader.at("token").report(Problem::Missing("the Token that the provider's own console has"));
    }
    let base = reader.read_secret_text("base_url", &target.base_url, base_url)?;
    format!("{base}/{path}").parse().map_err(|_| reader.report(Problem::Secret("identifiers that make a URL"))).ok()
}

fn identifier(reader: &KeyReader<'_>, name: &str, given: &Option<Scalar>, expected: &'static str) -> Option<String> {
    if given.is_none() {
        reader.at(name).report(Problem::Missing(expected));
    }
    reader.read_secret_text(name, given, segment)
}

/// An identifier that keeps the whole URL secret, and so may be stored elsewhere.
fn secret_identifier(
    reader: &KeyReader<'_>,
    name: &str,
    given: &Option<SecretSource>,
    expected: &'static str,
) -> Option<String> {
    let reader = reader.at(name);
    let Some(source) = given else {
        reader.report(Problem::Missing(expected));
        return None;
    };
    // An inline one is no reason to warn of the file's permissions: not everybody treats it as a secret.
    let text = reader.resolve_text(source)?;
    segment(text.expose()).map_err(|expected| reader.report(Problem::Secret(expected))).ok()
}

/// Encodes a path segment, which must not be empty. Rejects dots alone, which would be resolved as a relative path.
fn segment(text: &str) -> Parsed<String> {
    if text.is_empty() || text == "." || text == ".." {
        return Err("an identifier from the provider's console");
    }
    Ok(utf8_percent_encode(text, SEGMENT).to_string())
}

fn base_url(text: &str) -> Parsed<String> {
    let uri = value::url(text)?;
    if uri.query().is_some() {
        return Err("a URL without a query, such as \"https://core.authing.cn\"");
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn domain(text: &str) -> Parsed<Authority> {
    let authority: Option<Authority> = text.parse().ok();
    let sound = |authority: &Authority| !authority.as_str().contains('@') && value::has_sound_port(authority);
    authority.filter(sound).ok_or("a domain such as \"tenant.example.com\", with an optional port")
}

fn refuse_keys(reader: &KeyReader<'_>, target: &TargetSection, allowed: &[&str], broken: &'static str) {
    let given = [
        ("base_url", target.base_url.is_some()),
        ("identifier", target.identifier.is_some()),
        ("user_pool_id", target.user_pool_id.is_some()),
        ("domain", target.domain.is_some()),
        ("idp_id", target.idp_id.is_some()),
        ("provider_id", target.provider_id.is_some()),
    ];
    for (name, is_given) in given {
        if is_given && !allowed.contains(&name) {
            reader.at(name).report(Problem::action(broken, "remove it"));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_identifier_stays_one_segment_whatever_it_holds(text in "\\PC{1,20}") {
            if let Ok(segment) = segment(&text) {
                let uri: Uri = format!("https://a/connections/social/{segment}/pool/events").parse().unwrap();
                prop_assert_eq!(uri.path().split('/').count(), 6);
                prop_assert_eq!(uri.query(), None);
            }
        }
    }

    #[test]
    fn what_wechat_would_accept_is_an_answer_of_a_handler() {
        let rules = Endpoint::plaintext(Uri::from_static("http://h/")).answers.delivered_if.unwrap();
        assert_eq!(rules.texts.0.len(), ANSWERS_OF_HANDLERS.len(), "each is a valid pattern");
        for text in ["", "success", "<xml><a/></xml>", "<xml>", "<?xml version='1.0'?>\n<xml\n>"] {
            assert!(rules.texts.hold(text), "{text}");
        }
        for text in [r#"{"status":"error"}"#, "<!doctype html><xml>", "<xmlns>", "error", "<?xml?><html>"] {
            assert!(!rules.texts.hold(text), "{text}");
        }
    }

    #[test]
    fn dots_alone_are_no_identifier() {
        assert!(segment("..").is_err() && segment(".").is_err() && segment("").is_err());
        assert_eq!(segment("a/../b?c#d").as_deref(), Ok("a%2F..%2Fb%3Fc%23d"));
    }

    #[test]
    fn a_domain_may_have_a_port_and_nothing_else() {
        assert!(domain("a.example").is_ok() && domain("a.example:8443").is_ok());
        for broken in ["", "a/b", "u@a", "a:x", "https://a", "a b", ":80"] {
            assert!(domain(broken).is_err(), "{broken}");
        }
    }
}
