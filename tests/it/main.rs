//! Integration tests: the promises of the product, tested on the built binary with real sockets and an independent
//! WeChat.
//!
//! One file per promise. `support/` holds the peers; `tidy.rs` and `words.rs` hold the rules for the sources and texts.

#![expect(clippy::expect_used, reason = "in a test and its peers a failed expectation is the failure")]

mod account_kinds;
mod acme;
mod admin;
mod admin_routes;
mod allow_from;
mod audit;
mod bad_replies;
mod breaker;
mod certificates;
mod commands;
mod config;
mod corpus;
mod crash;
mod dedup;
mod deploy;
mod disk;
mod docs;
mod docs_commands;
mod docs_names;
mod doctor;
mod drain;
mod encryption;
mod floods;
mod forgery;
mod forget;
mod formats;
mod hostile_targets;
mod http;
mod isolation;
mod migration;
mod online;
mod opening;
mod order;
mod pause;
mod proxies;
mod proxy_protocol;
mod reading;
mod regression;
mod reload;
mod replay;
mod replies;
mod reply_choice;
mod reply_window;
mod retries;
mod routing;
mod secrecy;
mod secret_files;
mod socket_activation;
mod statuses;
mod support;
mod systemd;
mod tail;
mod targets;
mod tidy;
mod tls;
mod top;
mod traces;
mod unread_log;
mod vectors;
mod verification;
mod why;
