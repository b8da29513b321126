//! `wxrelay why`: finds the event that WeChat's alarm is about, over the admin API.
//!
//! If there is none, the command prints why: refused, no longer kept, or never arrived. A store in PostgreSQL is read
//! itself where no relay answers: the one that got the push may run elsewhere, or no more.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::access::{Access, RelayArgs};
use super::api::Api;
use super::console_paths::ALARMS;
use super::description::{EventTexts, description};
use super::output;
use super::samples;
use crate::admin::Status;
use crate::alarm::Alarm;
use crate::clock::UnixMillis;
use crate::escape;
use crate::ordered;
use crate::queue::EventFilter;
use crate::queue::view::{EventDetail, EventSummary};
use crate::wechat::Message;

/// The largest difference between CreateTime and the alarm's stamp that counts as the same push: WeChat tries for 15 s.
const SAME: Duration = Duration::from_secs(30);
/// The most events that are looked through, and those of them that are fetched one by one.
const LISTED: usize = 500;
const MAX_CANDIDATES: usize = 20;
/// The most events that are shown if several may be meant.
const SHOWN: usize = 5;
/// The exit codes of this command beside 0 and 1.
const NO_ALARM: u8 = 2;
const NOTHING_FOUND: u8 = 3;
/// The results of accepted pushes.
const ACCEPTED: [&str; 3] = ["accepted", "duplicate", "verified"];

/// `wxrelay why`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    relay: RelayArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Search for the event of this alarm, a line or all of it: `[OpenID=..][Stamp=..][Event=..]`, or `-` for stdin [default: stdin]
    alarm: Vec<String>,
}

/// Exits with 0 if an event was found, 1 if neither the relay nor PostgreSQL can be reached, 2 if the text names neither a
/// user nor a time, and 3 if nothing was found.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let alarm = Alarm::parse(&text(args.alarm)?);
    if !alarm.names_a_push() {
        writeln!(
            output::stderr(),
            "wxrelay: no `OpenID=..` and no `Stamp=..` in this\n\
             fix: paste the alarm's line, in quotes: wxrelay why '[OpenID=..][Stamp=..][Event=..]'\n\
             WeChat's alarms: {} (old console: {})",
            ALARMS.path,
            ALARMS.old_path
        )?;
        return Ok(NO_ALARM.into());
    }
    let source = Source::of(&args.relay).await?;
    let found = source.find(&alarm).await?;
    let Found { events, near } = found;
    let reason = if events.is_empty() { Some(source.reason(&alarm).await?) } else { None };
    if args.json {
        writeln!(output::stdout(), "{}", to_json(&alarm, &events, &near, reason.as_ref()))?;
    } else if let Some(reason) = &reason {
        write!(output::stdout(), "{}", reason.text(&alarm))?;
        if !near.is_empty() {
            writeln!(output::stdout(), "Near it, but not that push:")?;
        }
        for event in &near {
            write!(output::stdout(), "{}", description(event, EventTexts::LeftOut))?;
        }
    } else {
        for event in &events {
            write!(output::stdout(), "{}", description(event, EventTexts::LeftOut))?;
        }
        writeln!(
            output::stdout(),
            "What WeChat was answered, and how fast: the lines of the relay's log with this event id and \"push\"."
        )?;
    }
    Ok(if events.is_empty() { NOTHING_FOUND.into() } else { ExitCode::SUCCESS })
}

/// The text of the alarm, from the arguments or stdin.
fn text(given: Vec<String>) -> anyhow::Result<String> {
    if !given.is_empty() && given != ["-"] {
        return Ok(given.join(" "));
    }
    let mut text = String::new();
    io::stdin().take(64 << 10).read_to_string(&mut text)?;
    Ok(text)
}

/// What was found for an alarm.
#[derive(Default)]
struct Found {
    /// The events that it is or may be about.
    events: Vec<EventDetail>,
    /// Others of the same user or time, if there is none of those: of another kind, or of another time.
    near: Vec<EventDetail>,
}

/// Where events are looked for.
struct Source {
    access: Access,
    /// The running relay, and what it says of itself; `None` where the store is read instead.
    relay: Option<(Api, Status)>,
    /// The accounts, by name and AppID; `None` where they are not known.
    accounts: Option<Vec<(String, String)>>,
    /// How long finished events are kept, if the configuration can be read here.
    retention: Option<Duration>,
}

impl Source {
    async fn of(args: &RelayArgs) -> anyhow::Result<Self> {
        let retention = args.retention()?;
        let api = match (args.api(), args.shared_store()?) {
            (api, None) => api?,
            (Ok(api), Some(_)) if api.is_reachable().await => api,
            (Ok(_) | Err(_), Some(store)) => {
                let access = Access::Store(Box::new(store));
                return Ok(Self { access, relay: None, accounts: args.accounts(), retention });
            }
        };
        let status: Status = api.get("/api/status").await?;
        let accounts = status.accounts.iter().map(|account| (account.name.clone(), account.app_id.clone())).collect();
        Ok(Self { access: Access::Relay(api.clone()), relay: Some((api, status)), accounts: Some(accounts), retention })
    }

    /// The events that the alarm is or may be about, the nearest to its stamp first.
    async fn find(&self, alarm: &Alarm) -> anyhow::Result<Found> {
        let mut candidates = self.access.events(&self.filter(alarm)).await?;
        // Those of the kind first: many others may be nearer.
        let rank = |event: &EventSummary| {
            let is_about = alarm.is_about(&event.msg_type, &event.event, &event.event_key);
            (!is_about, alarm.stamp.map(|stamp| distance(event.received_at, stamp)))
        };
        ordered::sort(&mut candidates, |one, other| rank(one).cmp(&rank(other)));
        let mut found = Found::default();
        for event in candidates.iter().take(MAX_CANDIDATES) {
            // It may be deleted meanwhile.
            let Some(event) = self.access.event(event.id).await? else { continue };
            let is_same = |stamp| !alarm.is_exact || distance(created(&event), stamp) <= SAME;
            let is_about = alarm.is_about(&event.msg_type, &event.event, &event.event_key);
            if is_about && alarm.stamp.is_none_or(is_same) { &mut found.events } else { &mut found.near }.push(event);
        }
        for events in [&mut found.events, &mut found.near] {
            if let Some(stamp) = alarm.stamp {
                let rank = |event: &EventDetail| distance(created(event), stamp);
                ordered::sort(events, |one, other| rank(one).cmp(&rank(other)));
            }
            events.truncate(SHOWN);
        }
        if !found.events.is_empty() {
            found.near.clear();
        }
        Ok(found)
    }

    fn filter(&self, alarm: &Alarm) -> EventFilter {
        let (since, until) = alarm.window().unzip();
        EventFilter {
            account: alarm.app_id.as_ref().and_then(|app_id| self.account(app_id)),
            from: alarm.openid.clone(),
            since,
            until,
            limit: LISTED,
            ..EventFilter::default()
        }
    }

    /// The account with that AppID, if only one has it.
    fn account(&self, app_id: &str) -> Option<String> {
        let mut with = self.accounts.iter().flatten().filter(|(_, of)| *of == app_id);
        with.next().filter(|_| with.next().is_none()).map(|(name, _)| name.clone())
    }

    /// How many pushes the running relay has refused.
    async fn refused(&self) -> anyhow::Result<Vec<Refused>> {
        let Some((api, _)) = &self.relay else { return Ok(Vec::new()) };
        let metrics: String = api.get("/metrics").await?;
        let pushes = samples::of(&metrics, "wxrelay_pushes_total");
        let label = |sample: &samples::Sample<'_>, key| sample.label(key).unwrap_or_default().to_owned();
        let mut refused: Vec<Refused> = Vec::new();
        for sample in pushes.iter().filter(|sample| sample.value > 0.0) {
            let (account, result) = (label(sample, "account"), label(sample, "result"));
            if ACCEPTED.contains(&result.as_str()) {
                continue;
            }
            match refused.iter_mut().find(|one| one.account == account && one.result == result) {
                Some(same) => same.count += sample.value,
                None => refused.push(Refused { account, result, count: sample.value }),
            }
        }
        Ok(refused)
    }

    async fn reason(&self, alarm: &Alarm) -> anyhow::Result<Reason> {
        let refused = self.refused().await?;
        let retention = self.retention;
        let now = UnixMillis::now();
        let gone = alarm.stamp.zip(retention).is_some_and(|(stamp, retention)| now.since(stamp) > retention);
        let known = self.accounts.as_ref().zip(alarm.app_id.as_ref());
        let foreign = known.filter(|(accounts, id)| accounts.iter().all(|(_, app_id)| app_id != *id));
        let word = match (foreign, gone, refused.is_empty()) {
            (Some(_), ..) => "other_account",
            (None, true, _) => "no_longer_kept",
            (None, false, false) => "refused_or_never_arrived",
            (None, false, true) if self.relay.is_none() => "refused_or_never_arrived",
            (None, false, true) => "never_arrived",
        };
        let counted_since = self.relay.as_ref().map(|(_, status)| status.started_at);
        Ok(Reason { word, refused, counted_since, retention })
    }
}

/// Why no event was found.
struct Reason {
    word: &'static str,
    refused: Vec<Refused>,
    /// The start of the relay, since which refused pushes are counted; `None` where none answers.
    counted_since: Option<UnixMillis>,
    retention: Option<Duration>,
}

/// `wxrelay_pushes_total` of one account and one result.
struct Refused {
    account: String,
    result: String,
    count: f64,
}

impl Reason {
    fn text(&self, alarm: &Alarm) -> String {
        let Alarm { openid, stamp, event, app_id, is_exact: _ } = alarm;
        let [openid, app_id, kind] = [openid, app_id, event].map(|text| text.as_deref().map(escape::line));
        let mut out = match kind {
            Some(kind) => format!("no event {kind} found"),
            None => "no event found".to_owned(),
        };
        out += &openid.as_ref().map(|openid| format!(" of {openid}")).unwrap_or_default();
        out += &stamp.map(|stamp| format!(" around {stamp}")).unwrap_or_default();
        let retention = humantime::format_duration(self.retention.unwrap_or_default());
        out += &match self.word {
            "other_account" => format!(
                ".\nThe alarm is about AppID {}, which is none of this relay's accounts.\n",
                app_id.as_deref().unwrap_or_default()
            ),
            "no_longer_kept" => format!(".\nFinished events are kept for queue.retention = {retention}; this one would be older.\n"),
            "never_arrived" => ".\nNo push was refused either, so it never arrived: check DNS, firewall, TLS and the proxy before the relay.\n".to_owned(),
            _ => ".\nIt was refused, or it never arrived (DNS, firewall, TLS, the proxy before the relay).\n".to_owned(),
        };
        let Some(counted_since) = self.counted_since else {
            return out + "No relay answers here: the log of the one that got the push has a line if it was refused.\n";
        };
        if !self.refused.is_empty() {
            out += &format!(
                "Refused since {counted_since} (wxrelay_pushes_total; the log has a line for each, with its stamp):\n"
            );
            for Refused { account, result, count } in &self.refused {
                let account = if account.is_empty() { "(no account's path)" } else { account };
                out += &format!("  {account:20} {result:14} {count}\n");
            }
        }
        out
    }
}

fn to_json(alarm: &Alarm, found: &[EventDetail], near: &[EventDetail], reason: Option<&Reason>) -> Value {
    let Alarm { openid, stamp, event, app_id, is_exact: _ } = alarm;
    let stamp = stamp.map(|stamp| stamp.to_string());
    let alarm = json!({ "openid": openid, "stamp": stamp, "event": event, "app_id": app_id });
    let refused = |one: &Refused| json!({ "account": one.account, "result": one.result, "count": one.count });
    let refused: Option<Vec<_>> = reason.map(|reason| reason.refused.iter().map(refused).collect());
    let not_found = reason.map(|reason| reason.word);
    json!({ "alarm": alarm, "events": found, "near": near, "not_found": not_found, "refused": refused })
}

/// The CreateTime of an event; the time of its receipt if the text has none.
fn created(event: &EventDetail) -> UnixMillis {
    let message = Message::parse(event.text.as_bytes()).ok();
    let seconds = message.and_then(|message| i64::try_from(message.create_time()?).ok());
    seconds.map_or(event.received_at, |seconds| UnixMillis(seconds.saturating_mul(1000)))
}

fn distance(one: UnixMillis, other: UnixMillis) -> Duration {
    one.since(other).max(other.since(one))
}
