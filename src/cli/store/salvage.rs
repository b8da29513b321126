//! `wxrelay store salvage`: reads back what can be read of a store that was moved aside.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::cli::api::Api;
use crate::cli::{ConfigArgs, changes, output};
use crate::config::StoreAccess;
use crate::queue::{Salvage, salvage};

/// The exit code when something could not be read.
const INCOMPLETE: u8 = 3;
/// The pause between two requests for the relay's report.
const POLL: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub(super) struct Args {
    /// Read back this folder, such as /var/lib/wxrelay/damaged-20261120T080000Z [default: every damaged-* of queue.path]
    #[arg(long, value_name = "FOLDER")]
    from: Option<PathBuf>,
    /// Read and count, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Salvages in this process, or in the relay that has the store open; prints what was read back.
pub(super) async fn run(config: &ConfigArgs, args: Args) -> anyhow::Result<ExitCode> {
    let Args { from, dry_run, json } = args;
    let config = config.load_store()?;
    if let Some(folder) = &from
        && !folder.is_dir()
    {
        bail!("there is no folder {}", folder.display());
    }
    let store = store_folder(&config)?.to_owned();
    let report = match changes::open(&config).await? {
        Some(queue) => {
            let keys = config.queue.encryption_keys.clone();
            let report = salvage(&queue, &Salvage { store, from, dry_run, keys }).await;
            queue.close().await;
            serde_json::to_value(report?)?
        }
        None => in_relay(&config, from.as_deref(), dry_run).await?,
    };
    let text = if json { report.to_string() + "\n" } else { text(&report) };
    output::stdout().write_all(text.as_bytes())?;
    Ok(if is_complete(&report) { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
}

/// Lets the running relay do it, and waits for its report.
async fn in_relay(config: &StoreAccess, from: Option<&Path>, dry_run: bool) -> anyhow::Result<Value> {
    let name = from.map(|folder| folder_name(config, folder)).transpose()?;
    let api = Api::of(config)?;
    api.post("/api/store/salvage", Some(&json!({ "folder": name, "dry_run": dry_run }))).await?;
    loop {
        let run: Value = api.get("/api/store/salvage").await?;
        match run["state"].as_str() {
            Some("running") => tokio::time::sleep(POLL).await,
            Some("done") => return Ok(run["report"].clone()),
            _ => bail!("{}", run["error"].as_str().unwrap_or("the relay was restarted; salvage again")),
        }
    }
}

/// The folder of the store: only a store of files can be salvaged.
fn store_folder(config: &StoreAccess) -> anyhow::Result<&Path> {
    config.queue.folder().context("the store is in PostgreSQL: it has no files that could be salvaged")
}

/// The relay reads folders within its store only.
fn folder_name(config: &StoreAccess, folder: &Path) -> anyhow::Result<String> {
    let store = store_folder(config)?;
    let canonical = |path: &Path| path.canonicalize().with_context(|| path.display().to_string());
    let folder = canonical(folder)?;
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if folder.parent() != Some(&canonical(store)?) {
        bail!(
            "the running relay reads only folders in {}; move {} there, or stop the relay",
            store.display(),
            folder.display()
        );
    }
    Ok(name.to_owned())
}

fn stores(report: &Value) -> impl Iterator<Item = &Value> {
    report["stores"].as_array().into_iter().flatten()
}

fn count(store: &Value, key: &str) -> u64 {
    store[key].as_u64().unwrap_or(0)
}

fn is_complete(report: &Value) -> bool {
    stores(report).all(|store| ["unreadable", "incomplete", "damaged_pages"].iter().all(|key| count(store, key) == 0))
}

fn text(report: &Value) -> String {
    let mut text = String::new();
    for store in stores(report) {
        let folder = store["folder"].as_str().unwrap_or_default();
        let number = |key| count(store, key);
        let done = if report["dry_run"] == true {
            "nothing changed".to_owned()
        } else {
            format!("{} stored, {} there already", number("stored"), number("present"))
        };
        text += &format!(
            "{folder}: {} events read, {done}; deliveries: {} pending, {} dead, {} ended\n",
            number("events"),
            number("pending"),
            number("dead"),
            number("ended")
        );
        if number("unreadable") + number("incomplete") + number("damaged_pages") > 0 {
            text += &format!(
                "  {} events cannot be read, {} lack deliveries, {} pages are damaged\n",
                number("unreadable"),
                number("incomplete"),
                number("damaged_pages")
            );
        }
        for flaw in store["flaws"].as_array().into_iter().flatten() {
            let open: Vec<_> = flaw["open"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let open = if open.is_empty() { String::new() } else { format!("; open for {}", open.join(", ")) };
            let part = |key: &str| flaw[key].as_str().unwrap_or_default();
            text += &format!("  {}: {}{open}\n", part("event"), part("reason"));
        }
        if let Some(path) = store["salvaged_as"].as_str() {
            text += &format!("  kept as {path}; delete it when you no longer need it\n");
        }
    }
    if text.is_empty() { "there is no damaged store\n".to_owned() } else { text }
}
