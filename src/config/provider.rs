//! The URLs of identity providers, built from the identifiers that their consoles show.
//!
//! Invariant: an identifier stays within one path segment, whatever its characters. The URLs are as secret as the
//! identifiers, since nothing else protects those endpoints: no message quotes them.

use http::Uri;
use http::uri::Authority;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::error::Problem;
use super::file::{Scalar, TargetSection};
use super::key_reader::KeyReader;
use super::value::{self, Parsed};
use crate::deliver::Format;

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
}

/// A target's URL and the format that goes with it, from `url` or from `provider` and its keys.
pub(super) fn endpoint(reader: &KeyReader<'_>, target: &TargetSection) -> Option<(Uri, Format)> {
    let Some(name) = &target.provider else {
        refuse_keys(reader, target, &[], "only valid together with `provider`");
        if target.url.is_none() {
            reader.at("url").report(Problem::Missing("an http or https URL, or a `provider`"));
        }
        return Some((reader.read_secret_text("url", &target.url, value::url)?, Format::Raw));
    };
    if target.url.is_some() {
        reader.at("url").report(Problem::expected("`url` and `provider` exclude each other", "only one of them"));
    }
    let provider = reader.at("provider").parse(&name.0, parse)?;
    let url = match provider {
        ProviderPreset::Authing => social(reader, target, "https://core.authing.cn"),
        ProviderPreset::GenAuth => social(reader, target, "https://core.genauth.ai"),
        ProviderPreset::BambooCloud => bamboocloud(reader, target),
    };
    let format = if provider == ProviderPreset::BambooCloud { Format::Raw } else { Format::AuthingJson };
    Some((url?, format))
}

fn parse(name: &str) -> Parsed<ProviderPreset> {
    match name {
        "authing" => Ok(ProviderPreset::Authing),
        "genauth" => Ok(ProviderPreset::GenAuth),
        "bamboocloud" => Ok(ProviderPreset::BambooCloud),
        _ => Err("\"authing\", \"genauth\" or \"bamboocloud\""),
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
    let pool = identifier_of_pool(reader, target);
    let (base, identifier, pool) = (base?, identifier?, pool?);
    let url = format!("{base}/connections/social/{identifier}/{pool}/events");
    url.parse().map_err(|_| reader.report(Problem::Secret("identifiers that make a URL"))).ok()
}

fn identifier_of_pool(reader: &KeyReader<'_>, target: &TargetSection) -> Option<String> {
    identifier(reader, "user_pool_id", &target.user_pool_id, "the ID of the user pool")
}

/// `https://{domain}/api/v1/callback/wechatmpqr/{idp_id}`
fn bamboocloud(reader: &KeyReader<'_>, target: &TargetSection) -> Option<Uri> {
    refuse_keys(reader, target, &["domain", "idp_id"], "not a key of this `provider`");
    if target.domain.is_none() {
        reader.at("domain").report(Problem::Missing("the tenant's domain"));
    }
    let domain = reader.read_secret_text("domain", &target.domain, domain);
    let idp = identifier(reader, "idp_id", &target.idp_id, "the ID of the identity provider");
    let url = format!("https://{}/api/v1/callback/wechatmpqr/{}", domain?, idp?);
    url.parse().map_err(|_| reader.report(Problem::Secret("identifiers that make a URL"))).ok()
}

fn identifier(reader: &KeyReader<'_>, name: &str, given: &Option<Scalar>, expected: &'static str) -> Option<String> {
    if given.is_none() {
        reader.at(name).report(Problem::Missing(expected));
    }
    reader.read_secret_text(name, given, segment)
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
        ("base_url", &target.base_url),
        ("identifier", &target.identifier),
        ("user_pool_id", &target.user_pool_id),
        ("domain", &target.domain),
        ("idp_id", &target.idp_id),
    ];
    for (name, given) in given {
        if given.is_some() && !allowed.contains(&name) {
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
