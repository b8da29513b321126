//! `wxrelay check`: every error of a configuration, or the routing table that it makes; with `--online` also whether
//! every target is reachable.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::console_paths;
#[cfg(feature = "postgres")]
use super::database;
use super::fixable::on_one_line;
use super::online::{self, ProbeResult};
use super::output;
use super::shares::Shares;
use super::slow_replies;
use super::{BadConfig, ConfigArgs, taken_addresses};
use crate::app;
use crate::config::Config;
use crate::config::routing_table::{AccountEntry, ReplySource, RouteEntry, RoutingTable, TargetEntry};
use crate::deliver::{Role, Tries};
use crate::escape;
use crate::login;
use crate::push::ReplyWindow;
use crate::queue::{Engine, Inspect};
use crate::wechat::ReplyBody;

/// `wxrelay check`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Probe every target and PostgreSQL: send WeChat's verification to `wechat` targets, connect to the others, and exit
    /// with 1 if one fails. Sends no event
    #[arg(long)]
    online: bool,
    /// Print the routing table as JSON
    #[arg(long)]
    json: bool,
}

/// Prints the table to stdout, or every error to stderr.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut config = args.config.load()?;
    config.warnings.extend(slow_replies::find(&config, args.online).await);
    for warning in &config.warnings {
        output::stderr().write_line(&format!("warning: {warning}"))?;
    }
    if report_start_errors(&config).await? {
        return Ok(BadConfig::EXIT_CODE.into());
    }
    let table = RoutingTable::of(&config);
    if !args.json {
        write!(output::stdout(), "{}{}", text(&table), logins(&config.logins))?;
    }
    let Online { targets, store, replicas } = if args.online { Online::of(&config).await } else { Online::default() };
    if args.json {
        let mut printed = json(&table, &config);
        if args.online {
            printed["online"] = targets.iter().map(ProbeResult::to_json).collect();
        }
        if let Some(store) = &store {
            printed["store"] = store.json.clone();
        }
        if let Some(Replicas { json, .. }) = &replicas {
            printed["replicas"] = json.clone();
        }
        writeln!(output::stdout(), "{printed:#}")?;
    } else if store.is_some() || !targets.is_empty() {
        writeln!(output::stdout(), "\nonline")?;
        let lines = store.iter().map(|store| store.text.clone()).chain(targets.iter().map(ToString::to_string));
        for line in lines.chain(replicas.into_iter().flat_map(|replicas| replicas.lines)) {
            output::stdout().write_line(&format!("  {line}"))?;
        }
    }
    let is_well = targets.iter().all(|probe| probe.result.is_ok()) && store.is_none_or(|store| store.is_ok);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What `--online` found.
#[derive(Default)]
struct Online {
    targets: Vec<ProbeResult>,
    /// `None` for a store of files.
    store: Option<StoreResult>,
    /// The same.
    replicas: Option<Replicas>,
}

/// The live replicas, for people and for scripts.
struct Replicas {
    lines: Vec<String>,
    json: Value,
}

/// The result for the store, for people and for scripts.
struct StoreResult {
    text: String,
    json: Value,
    is_ok: bool,
}

impl Online {
    async fn of(config: &Config) -> Self {
        let store = async {
            match &config.queue.engine {
                Engine::Embedded { .. } => None,
                #[cfg(feature = "postgres")]
                Engine::Postgres(settings) => {
                    let probe = database::probe(settings).await;
                    Some(StoreResult { text: probe.to_string(), json: probe.to_json(), is_ok: probe.is_ok() })
                }
            }
        };
        let (targets, store, replicas) = tokio::join!(online::probe_targets(config), store, live_replicas(config));
        Self { targets, store, replicas }
    }
}

/// The replicas, where there are tables that name them.
async fn live_replicas(config: &Config) -> Option<Replicas> {
    if config.queue.folder().is_none()
        && let Ok(store) = Inspect::open(&config.queue).await
        && let Ok(Some(replicas)) = store.replicas().await
    {
        let shares = Shares::of(config, &replicas);
        return Some(Replicas { lines: shares.lines(), json: shares.to_json() });
    }
    None
}

/// Prints what would keep the relay from starting, one error per line; whether there is any.
async fn report_start_errors(config: &Config) -> anyhow::Result<bool> {
    let mut found = false;
    let taken = taken_addresses::find(config).await.into_iter().map(app::StartError::Bind);
    for error in app::check(config).into_iter().chain(taken) {
        // Depends on the user and the unit of the service more than on the configuration.
        let is_warning = error.depends_on_user();
        let error = anyhow::Error::from(error);
        let label = if is_warning { "warning: " } else { "" };
        output::stderr().write_line(&format!("{label}{}", on_one_line(&error)))?;
        found |= !is_warning;
    }
    Ok(found)
}

/// Accounts with their routes, then targets, as aligned text.
fn text(table: &RoutingTable) -> String {
    let mut text = String::new();
    for account in &table.accounts {
        let facts = [
            ("path", account.path.clone()),
            ("app_id", account.app_id.clone()),
            ("mode", account.mode.to_string()),
            ("replies", reply_time(account)),
        ];
        push_block(&mut text, &format!("account {}", account.name), &facts);
        push_routes(&mut text, &account.routes);
    }
    for target in &table.targets {
        let facts = [
            ("role", role_name(target.role).to_owned()),
            ("url", target.url.clone()),
            ("format", target.format.to_owned()),
            (
                "timeout",
                format!("{}, {} concurrent attempts{}", words(target.timeout), target.concurrency, tries(target)),
            ),
            ("retry", retry(target)),
            ("then", end(target)),
        ];
        push_block(&mut text, &format!("target {}", target.name), &facts);
    }
    text
}

/// Logins with what to enter where, and verification files.
fn logins(settings: &login::Settings) -> String {
    let mut text = String::new();
    for login in &settings.logins {
        let facts = [
            ("enter", format!("redirect_uri = https://<callback domain>{}", login.path)),
            ("to", login.to.clone()),
            ("pass", login.pass.join(", ")),
        ];
        text.push('\n');
        push_block(&mut text, &format!("login {}", login.name), &facts);
    }
    if !settings.logins.is_empty() {
        text +=
            &format!("\nenter the callback domain, without scheme and path, at {}\n", console_paths::CALLBACK_DOMAINS);
    }
    if !settings.verify_files.is_empty() {
        text += "\nverification files\n";
    }
    for file in &settings.verify_files {
        text += &format!("  /{}  {} bytes\n", file.name, file.content.len());
    }
    text
}

/// The routing table as JSON.
fn json(table: &RoutingTable, config: &Config) -> Value {
    let accounts = table.accounts.iter().map(|account| {
        let routes = account.routes.iter().map(|route| {
            let reply = (!route.reply.is_empty()).then(|| reply(&route.reply));
            json!({ "when": when(route), "to": route.to, "reply": reply })
        });
        json!({
            "name": account.name, "path": account.path, "app_id": account.app_id, "mode": account.mode.to_string(),
            "replies": reply_time(account), "routes": routes.collect::<Vec<_>>(),
        })
    });
    let targets = table.targets.iter().map(|target| {
        json!({
            "name": target.name, "role": role_name(target.role), "url": target.url, "format": target.format,
            "timeout": words(target.timeout), "concurrency": target.concurrency,
            "tries": if target.tries == Tries::Once { "once" } else { "each" },
            "retry": target.retry.iter().map(|wait| words(*wait)).collect::<Vec<_>>(),
            "expire_after": target.expire_after.map(words), "end": end(target),
        })
    });
    let logins = config.logins.logins.iter().map(|login| {
        json!({ "name": *login.name, "path": login.path, "to": login.to, "pass": login.pass, "home": login.home })
    });
    let verify_files = config.logins.verify_files.iter().map(|file| format!("/{}", file.name));
    json!({
        "accounts": accounts.collect::<Vec<_>>(), "targets": targets.collect::<Vec<_>>(),
        "logins": logins.collect::<Vec<_>>(), "verify_files": verify_files.collect::<Vec<_>>(),
        "warnings": config.warnings, "sha256": config.sha256,
    })
}

fn push_block(text: &mut String, title: &str, facts: &[(&str, String)]) {
    let gap = if text.is_empty() { "" } else { "\n" };
    *text += &format!("{gap}{title}\n");
    for (name, fact) in facts {
        *text += &format!("  {name:<9}{}\n", escape::line(fact));
    }
}

fn push_routes(text: &mut String, routes: &[RouteEntry]) {
    let rows: Vec<_> = routes.iter().map(|route| (when(route), to(route), &route.reply)).collect();
    let widest = |texts: &mut dyn Iterator<Item = &String>| texts.map(|text| text.chars().count()).max().unwrap_or(0);
    let when_width = widest(&mut rows.iter().map(|(when, _, _)| when));
    let to_width = widest(&mut rows.iter().map(|(_, to, _)| to));
    for (index, (when, to, sources)) in rows.iter().enumerate() {
        let mut line = format!("  routes[{index}]  {when:<when_width$}  -> {to:<to_width$}");
        if !sources.is_empty() {
            line += &format!("  reply {}", reply(sources));
        }
        *text += &format!("{}\n", escape::line(line.trim_end()));
    }
}

/// How long after a push a reply still reaches the user.
fn reply_time(account: &AccountEntry) -> String {
    let budget = words(account.reply_budget);
    match account.reply_window {
        None => format!("within {budget}"),
        Some(ReplyWindow { length, failures, period }) => {
            let (length, period) = (words(length), words(period));
            format!("within {budget}, or {length} by WeChat's retries, at the cost of {failures} failures in {period}")
        }
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Identity => "identity",
        Role::Handler => "handler",
    }
}

fn when(route: &RouteEntry) -> String {
    let Some(conditions) = &route.conditions else { return "otherwise".to_owned() };
    conditions.iter().map(|(key, patterns)| format!("{key} = {patterns}")).collect::<Vec<_>>().join(", ")
}

fn to(route: &RouteEntry) -> String {
    if route.to.is_empty() { "nowhere".to_owned() } else { route.to.join(", ") }
}

fn reply(sources: &[ReplySource]) -> String {
    let source = |source: &ReplySource| match source {
        ReplySource::Target(name) => format!("by {name}"),
        ReplySource::Fixed(body) => fixed(body),
    };
    sources.iter().map(source).collect::<Vec<_>>().join(", else ")
}

fn fixed(body: &ReplyBody) -> String {
    match body {
        ReplyBody::Text { content } => format!("{content:?}"),
        ReplyBody::Image { .. } => "an image".to_owned(),
        ReplyBody::Voice { .. } => "a voice message".to_owned(),
        ReplyBody::Video { .. } => "a video".to_owned(),
        ReplyBody::Music { .. } => "music".to_owned(),
        ReplyBody::News { .. } => "an article".to_owned(),
        ReplyBody::TransferCustomerService { .. } => "customer service".to_owned(),
    }
}

fn tries(target: &TargetEntry) -> String {
    match target.tries {
        Tries::Once => String::new(),
        Tries::Each { not_yet_after } => {
            format!(", a try every 5s until it replies; an empty answer within {} is final", words(not_yet_after))
        }
    }
}

fn retry(target: &TargetEntry) -> String {
    let waits: Vec<_> = target.retry.iter().map(|wait| words(*wait)).collect();
    match waits.last() {
        None => "none".to_owned(),
        Some(last) if target.retry_repeats => format!("after {}, then every {last}", waits.join(", ")),
        Some(_) => format!("after {}", waits.join(", ")),
    }
}

/// The final state of a delivery whose attempts all fail, and when it is reached.
fn end(target: &TargetEntry) -> String {
    let attempts = target.retry.len() + 1;
    let dead = format!("dead after {attempts} attempts, about {}", about(target.retry.iter().sum()));
    match target.expire_after {
        Some(after) if target.retry_repeats => format!("expired {} after the push", words(after)),
        Some(after) => format!("{dead}, or expired {} after the push", words(after)),
        None if target.retry.is_empty() => "dead after the first attempt".to_owned(),
        None => dead,
    }
}

/// A duration as an operator writes it: whole hours stay hours.
fn words(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds >= 3600 && duration == Duration::from_hours(seconds / 3600) => {
            format!("{}h", seconds / 3600)
        }
        _ => humantime::format_duration(duration).to_string(),
    }
}

/// A duration, rounded to hours if it is long.
fn about(duration: Duration) -> String {
    if duration < Duration::from_hours(3) {
        words(duration)
    } else {
        format!("{}h", (duration.as_secs() + 1800) / 3600)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

    fn loaded(name: &str) -> Config {
        let secrets = [
            ("SHOP_TOKEN", "0123"),
            ("SHOP_AES_KEY", "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"),
            ("CRM_SECRET", SECRET),
        ];
        let env = secrets.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        crate::config::load(Some(&file), env, &[]).unwrap_or_else(|errors| panic!("{name}: {errors:#?}"))
    }

    #[test]
    fn the_table_is_printed_in_the_order_of_the_file() {
        let config = loaded("config.toml.example");
        let table = RoutingTable::of(&config);
        let printed = text(&table);
        let expected = "account shop
  path     /wechat/events
  app_id   wx0123456789abcdef
  mode     secure
  replies  within 4s 500ms
  routes[0]  event = subscribe | SCAN              -> login        reply \"Welcome!\"
  routes[1]  msg_type = text, content = re:^#\\d+$  -> crm          reply by crm
  routes[2]  otherwise                             -> crm, legacy

target crm
";
        assert!(printed.starts_with(expected), "{printed}");
        assert!(printed.contains("  then     expired 2m after the push"), "{printed}");
        let replies = text(&RoutingTable::of(&loaded("tests/data/config/valid/replies.toml")));
        assert!(replies.contains("  reply by bot, else by crm, else \"One moment, please.\"\n"), "{replies}");
        let time = "  replies  within 4s, or 14s 500ms by WeChat's retries, at the cost of 5 failures in 1m\n";
        assert!(replies.contains(time), "{replies}");
        let tries =
            "32 concurrent attempts, a try every 5s until it replies; an empty answer within 2s 500ms is final\n";
        assert!(replies.contains(tries), "{replies}");
        let json = json(&table, &config);
        assert_eq!(json["accounts"][0]["routes"][2]["when"], "otherwise");
        assert_eq!(json["targets"][2]["end"], "expired 2m after the push");
    }
}
