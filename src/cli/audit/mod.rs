//! `wxrelay audit`: counts the deliveries in the store by state; with `--deep` it also reads back every stored event.

mod deep;

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use self::deep::DeepAudit;
use super::ConfigArgs;
use super::display::{Column, StyledLine, Table};
use super::output;
use crate::queue::view::{Counts, ReplyCounts};
use crate::queue::{Audit, DamagedStore, Inspect, Spools, find_damage, list_damaged, survey};

/// `wxrelay audit`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Read back every stored event too, and check that it can be decrypted, parsed and delivered; slow
    #[arg(long)]
    deep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct AuditReport<'a> {
    #[serde(flatten)]
    ledger: Option<&'a Audit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deep: Option<&'a DeepAudit>,
    /// What waits in spools for PostgreSQL: the counts do not have it yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    spools: Option<&'a Spools>,
    /// The folders of damaged stores that were moved aside and not salvaged yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<&'a str>,
}

/// Prints the ledger; exit code 1 if one delivery is unaccounted for, one event cannot be opened, parsed or delivered,
/// or a damaged store was moved aside and not salvaged yet.
pub async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let access = args.config.load_store()?;
    // Only the accounts and targets of the whole configuration show whether an event can be delivered.
    let config = args.deep.then(|| args.config.load()).transpose()?;
    let folder = access.queue.folder();
    let damaged = folder.map_or_else(|| Ok(Vec::new()), list_damaged)?;
    // On standard error, where they stand also if there is nothing to count.
    for DamagedStore { path, record, .. } in &damaged {
        let reason = record.as_ref().map_or("unknown reason", |record| record.reason.word());
        let found = format!("damaged store moved aside: {} ({reason})", path.display());
        output::stderr().write_line(&found)?;
        output::stderr().write_line(&format!("  -> {}", DamagedStore::REMEDY))?;
    }
    let unused = folder.filter(|folder| survey(folder).holder.is_none());
    let unseen = unused.map(find_damage).transpose()?.flatten();
    if let Some((reason, detail)) = &unseen {
        output::stderr().write_line(&format!("damaged store ({}): {detail}", reason.word()))?;
        output::stderr().write_line("  -> the next start moves it aside")?;
    }
    let store = Inspect::open(&access.queue).await?;
    let deep = match &config {
        Some(config) => Some(deep::audit_events(&store, config).await?),
        None => None,
    };
    let spools = store.spools(&access.queue).await?;
    let ledger = store.audit().await;
    // Findings are printed even if the damage prevents counting.
    if deep.is_some() || ledger.is_ok() {
        let damaged = damaged.iter().map(|store| &*store.name).collect();
        let report =
            AuditReport { ledger: ledger.as_ref().ok(), deep: deep.as_ref(), spools: spools.as_ref(), damaged };
        let text = if args.json { serde_json::to_string(&report)? + "\n" } else { report.to_string() };
        output::stdout().write_all(text.as_bytes())?;
    }
    let clean = ledger?.is_clean() && deep.is_none_or(|deep| deep.is_clean()) && damaged.is_empty() && unseen.is_none();
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl fmt::Display for AuditReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ledger.map_or(Ok(()), |ledger| f.write_str(&text(ledger)))?;
        self.spools.map_or(Ok(()), |spools| f.write_str(&text_of_spools(spools)))?;
        self.deep.map_or(Ok(()), |deep| write!(f, "{deep}"))
    }
}

fn text_of_spools(spools: &Spools) -> String {
    let mut text = match spools.events {
        Some(events) => format!("{events} more events in the spool of this machine\n"),
        None => String::new(),
    };
    if !spools.unseen.is_empty() {
        text += &format!("spools not visible from this machine: {}\n", spools.unseen.join(", "));
    }
    text
}

const COLUMNS: [Column; 7] = [
    Column::elided("TARGET", 8),
    Column::number("ACCEPTED"),
    Column::number("DELIVERED"),
    Column::number("DEAD"),
    Column::number("EXPIRED"),
    Column::number("CANCELLED"),
    Column::number("PENDING"),
];

/// The counts as a table.
pub fn text(audit: &Audit) -> String {
    let mut table = Table::new(&COLUMNS);
    let mut push = |name: &str, total: u64, counts: &Counts| {
        let Counts { delivered, dead, expired, cancelled, pending } = counts;
        let numbers = [&total, delivered, dead, expired, cancelled, pending].map(|count| count.to_string().into());
        table.push([StyledLine::from(name)].into_iter().chain(numbers).collect());
    };
    for target in &audit.targets {
        push(&target.target, target.counts.total(), &target.counts);
    }
    push("all", audit.deliveries, &audit.counts);
    let lines = table.lines(output::terminal_width());
    let mut text: String = lines.iter().map(|line| line.encode(false) + "\n").collect();
    text += &format!("{} events, {} deliveries, {} unaccounted for", audit.events, audit.deliveries, audit.unaccounted);
    text += match (audit.is_clean(), audit.drift) {
        (true, _) => ":\naccepted = delivered + dead + expired + cancelled + pending\n",
        (false, 0) => ": THE COUNTS DO NOT ADD UP\n  -> keep the store and report this\n",
        (false, _) => ": the running counts differ from the rows\n  -> keep the store and report this\n",
    };
    if !audit.replies.is_empty() {
        let ReplyCounts { given, sent, held, picked_up, superseded, dropped, expired } = audit.replies;
        text += &format!(
            "{given} replies given: {sent} sent, {held} held, {picked_up} picked up, {superseded} superseded, {dropped} \
             dropped, {expired} expired\n"
        );
    }
    text
}
