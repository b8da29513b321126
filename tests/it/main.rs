//! Integration tests: the promises of the product, tested on the built binary with real sockets and an independent
//! WeChat.
//!
//! One file per promise. `support/` holds the peers; `tidy.rs` and `words.rs` hold the rules for the sources and texts.

#![expect(clippy::expect_used, reason = "in a test and its peers a failed expectation is the failure")]

mod accepted_replies;
mod account_kinds;
mod acme;
#[cfg(feature = "postgres")]
mod acme_replicas;
mod admin;
mod admin_address;
mod admin_routes;
mod admin_slow;
mod allow_from;
mod answers;
mod arguments;
mod audit;
mod bad_replies;
mod breaker;
mod broken_config;
mod broken_setups;
mod certificates;
mod checks;
mod ci;
mod clock;
mod commands;
mod config;
mod confirmations;
mod console;
mod corpus;
mod crash;
mod dedup;
mod deploy;
mod descriptors;
mod disk;
mod docs;
mod docs_commands;
mod docs_names;
mod doctor;
mod doctor_logins;
mod drain;
mod encryption;
mod floods;
mod forgery;
mod forget;
mod formats;
mod health;
mod held_replies;
mod hostile_targets;
mod http;
mod init;
mod isolation;
mod log_rate;
mod logins;
mod lost_files;
mod memory;
mod migration;
mod one_target;
mod online;
mod opening;
mod order;
mod pause;
#[cfg(feature = "postgres")]
mod postgres_commands;
#[cfg(feature = "postgres")]
mod postgres_faults;
#[cfg(feature = "postgres")]
mod postgres_replicas;
#[cfg(feature = "postgres")]
mod postgres_servers;
#[cfg(feature = "postgres")]
mod postgres_spool;
#[cfg(feature = "postgres")]
mod postgres_start;
mod providers;
mod proxies;
mod proxy_protocol;
mod reading;
mod regression;
mod reload;
mod reload_and_status;
mod replay;
mod replies;
mod reply_addressing;
mod reply_after_crash;
mod reply_choice;
mod reply_window;
mod retries;
mod rotten_events;
mod routing;
mod salvage;
mod screens;
mod secrecy;
mod secret_files;
mod socket_activation;
mod stale_connections;
mod start_errors;
mod statuses;
mod stop;
#[cfg(feature = "postgres")]
mod store_copy;
mod store_damage;
mod store_folder;
mod support;
mod systemd;
mod tail;
mod targets;
mod terminals;
mod tidy;
mod tls;
mod top;
mod traces;
mod tries;
mod unread_log;
mod users;
mod vectors;
mod verification;
mod why;
mod words;
