//! `server.tls`: certificates from files, and those that an authority issues by ACME.

use std::path::Path;

use super::error::Problem;
use super::file;
use super::key_reader::KeyReader;
use super::value;
use crate::server::{AcmeSettings, Certificate, TlsFiles, acme};

/// Where certificates from ACME are kept.
pub(super) enum Kept<'p> {
    /// In the folder of the store.
    Files(&'p Path),
    /// In PostgreSQL, sealed with a key if there is one.
    Postgres {
        /// Whether there is.
        has_key: bool,
    },
}

/// One certificate, or several selected by SNI, the default first.
pub(super) fn all(reader: &KeyReader<'_>, file: &file::Tables<file::TlsSection>, store: &Kept<'_>) -> Vec<Certificate> {
    let list = match file {
        file::Tables::One(tls) => return one(reader, tls, store).into_iter().collect(),
        file::Tables::Several(list) => list,
    };
    if list.is_empty() {
        reader.report(Problem::Missing("at least one { cert = \"..\", key = \"..\" }, or server.tls left out"));
    }
    let mut ordered: Vec<String> = Vec::new();
    let mut certificates = Vec::new();
    for (index, tls) in list.iter().enumerate() {
        let Some(certificate) = one(&reader.nth(index), tls, store) else { continue };
        if let Certificate::Acme(settings) = &certificate {
            if settings.domains.iter().any(|domain| ordered.contains(domain)) {
                let problem = Problem::expected("a domain of an earlier `acme` table", "each domain in one table");
                reader.nth(index).at("acme").at("domains").report(problem);
            }
            ordered.extend(settings.domains.iter().cloned());
        }
        certificates.push(certificate);
    }
    certificates
}

fn one(reader: &KeyReader<'_>, file: &file::TlsSection, store: &Kept<'_>) -> Option<Certificate> {
    let Some(acme) = &file.acme else { return files(reader, file).map(Certificate::Files) };
    if file.cert.is_some() || file.key.is_some() {
        reader.report(Problem::expected(
            "certificate files beside `acme`",
            "either `cert` and `key`, or `acme`, which needs no files",
        ));
    }
    by_acme(&reader.at("acme"), acme, store).map(Certificate::Acme)
}

fn files(reader: &KeyReader<'_>, file: &file::TlsSection) -> Option<TlsFiles> {
    for (name, given) in [("cert", &file.cert), ("key", &file.key)] {
        if given.is_none() {
            reader.at(name).report(Problem::Missing("the path of a PEM file"));
        }
    }
    let cert = reader.existing_file("cert", &file.cert);
    let key = reader.private_file("key", &file.key);
    Some(TlsFiles { cert: cert?, key: key? })
}

fn by_acme(reader: &KeyReader<'_>, file: &file::AcmeSection, store: &Kept<'_>) -> Option<AcmeSettings> {
    let at = reader.at("domains");
    let given = file.domains.as_ref().map_or(&[][..], |list| &list.0);
    if given.is_empty() {
        at.report(Problem::Missing("the names that the certificate is for, such as [\"wx.example.com\"]"));
    }
    let mut domains = Vec::new();
    for (index, text) in given.iter().enumerate() {
        let at = at.nth(index);
        let Some(domain) = at.parse(text, value::domain) else { continue };
        if domains.contains(&domain) {
            at.report(Problem::expected("the same domain as above", "each once"));
        }
        domains.push(domain);
    }
    let directory = match &file.directory {
        None => acme::LETS_ENCRYPT.to_owned(),
        given => reader.read("directory", given, value::directory)?,
    };
    let email = reader.read("email", &file.email, value::email);
    let ca = reader.existing_file("ca", &file.ca);
    let (store, shared) = match store {
        Kept::Files(folder) => (*folder, false),
        Kept::Postgres { has_key } => {
            if !has_key {
                let broken = "with queue.type = \"postgres\" its private key is kept there, and must be encrypted";
                reader.report(Problem::action(broken, "set queue.encryption_keys, or end TLS at the load balancer"));
                return None;
            }
            (Path::new("postgresql"), true)
        }
    };
    let file = acme::file(store, &directory, domains.first()?);
    Some(AcmeSettings { domains, email, directory, ca, file, shared })
}
