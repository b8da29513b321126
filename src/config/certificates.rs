//! `server.tls`: certificates from files, and those that an authority gives by ACME.

use std::path::Path;

use super::error::Problem;
use super::file;
use super::scope::Scope;
use super::value;
use crate::server::{Certificate, TlsFiles, acme};

/// One certificate, or several by name, the default first.
pub(super) fn all(scope: &Scope<'_>, file: &file::Tables<file::Tls>, store: &Path) -> Vec<Certificate> {
    let list = match file {
        file::Tables::One(tls) => return one(scope, tls, store).into_iter().collect(),
        file::Tables::Several(list) => list,
    };
    if list.is_empty() {
        scope.fault(Problem::Missing("at least one { cert = \"..\", key = \"..\" }, or server.tls left out"));
    }
    let mut ordered: Vec<String> = Vec::new();
    let mut certificates = Vec::new();
    for (index, tls) in list.iter().enumerate() {
        let Some(certificate) = one(&scope.nth(index), tls, store) else { continue };
        if let Certificate::Acme(settings) = &certificate {
            if settings.domains.iter().any(|domain| ordered.contains(domain)) {
                let rule = "a domain that stands in an `acme` above, expected each in one alone";
                scope.nth(index).at("acme").at("domains").fault(Problem::Rule(rule));
            }
            ordered.extend(settings.domains.iter().cloned());
        }
        certificates.push(certificate);
    }
    certificates
}

fn one(scope: &Scope<'_>, file: &file::Tls, store: &Path) -> Option<Certificate> {
    let Some(acme) = &file.acme else { return files(scope, file).map(Certificate::Files) };
    if file.cert.is_some() || file.key.is_some() {
        scope.fault(Problem::Rule("expected either `cert` and `key`, or `acme`, which needs no files"));
    }
    by_acme(&scope.at("acme"), acme, store).map(Certificate::Acme)
}

fn files(scope: &Scope<'_>, file: &file::Tls) -> Option<TlsFiles> {
    for (name, given) in [("cert", &file.cert), ("key", &file.key)] {
        if given.is_none() {
            scope.at(name).fault(Problem::Missing("the path of a PEM file"));
        }
    }
    let cert = scope.existing("cert", &file.cert);
    let key = scope.private("key", &file.key);
    Some(TlsFiles { cert: cert?, key: key? })
}

fn by_acme(scope: &Scope<'_>, file: &file::Acme, store: &Path) -> Option<acme::Settings> {
    let at = scope.at("domains");
    let given = file.domains.as_ref().map_or(&[][..], |list| &list.0);
    if given.is_empty() {
        at.fault(Problem::Missing("the names that the certificate is for, such as [\"wx.example.com\"]"));
    }
    let mut domains = Vec::new();
    for (index, text) in given.iter().enumerate() {
        let at = at.nth(index);
        let Some(domain) = at.parse(text, value::domain) else { continue };
        if domains.contains(&domain) {
            at.fault(Problem::Rule("the same domain as above, expected each once"));
        }
        domains.push(domain);
    }
    let directory = match &file.directory {
        None => acme::LETS_ENCRYPT.to_owned(),
        given => scope.read("directory", given, value::directory)?,
    };
    let email = scope.read("email", &file.email, value::email);
    let ca = scope.existing("ca", &file.ca);
    let file = acme::file(store, &directory, domains.first()?);
    Some(acme::Settings { domains, email, directory, ca, file })
}
