//! The machine: the store's folder, its content and encryption, the speed and free space of its disk, and the limit of
//! open files.
//!
//! The store is not changed. The only write is a small file beside it, which times a flush and is removed.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use rustix::fs::{Access, access, statvfs};
use rustix::process::{Resource, getrlimit};
use tokio::time::{Instant, timeout};

use super::report::{CheckResult, CheckResults, DoctorCheck};
use super::run_detached;
use crate::config::Config;
use crate::queue::{
    DamagedStore, EncryptionKey, EncryptionStatus, Error, Fingerprint, Inspect, LockHolder, SCHEMA, Settings,
    SqliteBuild, Stats, survey,
};
use crate::server::{MAX_CONNECTIONS, descriptors};

/// How long to wait for the disk.
const DISK_TIMEOUT: Duration = Duration::from_secs(20);
const FLUSHES: usize = 15;
/// The limits for flush times: a push is answered after at least one flush, and WeChat waits 5 s.
const SLOW_MEDIAN: Duration = Duration::from_millis(25);
const SLOW_MAX: Duration = Duration::from_millis(500);
const FAILED_MEDIAN: Duration = Duration::from_secs(1);
/// The store's reserve file takes up to this much.
const MIN_FREE_SPACE: u64 = 64 << 20;
/// The open files that are not connections: the store, its readers, listeners, certificates.
const OTHER_FILES: u64 = 64;
/// The relay cannot work with a lower limit.
const MIN_FILES: u64 = 256;

/// Folder, disk, free space, store, encryption. With PostgreSQL `postgres.rs` checks the store.
pub(super) async fn store(settings: Settings) -> CheckResults {
    let mut findings = CheckResults::default();
    let Some(path) = settings.folder() else { return findings };
    let (line, usable) = folder(path, "queue.path");
    findings.lines.push(line);
    if usable {
        findings.lines.push(disk(path).await);
    }
    let stats = stats(&settings).await;
    findings.lines.push(space(path, settings.max_size, stats.as_ref().map_or(0, |stats| stats.bytes)));
    findings.lines.push(contents(path, stats));
    findings.lines.push(encryption(path.display(), &settings, "folder").await);
    findings
}

/// The folder of the spool, its owner and its disk: a push that is spooled is on it alone.
#[cfg(feature = "postgres")]
pub(super) async fn spool(path: &Path, size: u64) -> Vec<CheckResult> {
    let check = DoctorCheck::new("folder", path.display());
    if let Err(error) = crate::queue::check_owner(path) {
        return vec![check.warning(&error, error.remedy().unwrap_or_default())];
    }
    let (line, usable) = folder(path, "queue.spool");
    let mut lines = vec![line];
    if usable {
        lines.push(disk(path).await);
        lines.push(space(path, size, 0));
    }
    lines
}

pub(super) async fn stats(settings: &Settings) -> Result<Stats, Error> {
    Inspect::open(settings).await?.stats().await
}

/// Whether the folder exists, is writable and on a local disk; also whether its disk can be timed.
fn folder(path: &Path, key: &str) -> (CheckResult, bool) {
    let check = DoctorCheck::new("folder", path.display());
    let elsewhere = format!("set {key} to a folder that the relay's user may write to");
    if !path.exists() {
        let parent = nearest(path);
        return match access(&parent, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) if parent.is_dir() => (
                check.warning("missing: the relay creates it when it starts", format!("start it, or check {key}")),
                false,
            ),
            Ok(()) => (check.failed(format!("missing, and {} is not a folder", parent.display()), elsewhere), false),
            Err(error) => {
                let why = io::Error::from(error);
                let text = format!("missing, and cannot be created in {} ({why})", parent.display());
                (check.failed(text, elsewhere), false)
            }
        };
    }
    let mode = match fs::metadata(path) {
        Ok(found) if found.is_dir() => found.permissions().mode(),
        Ok(_) => return (check.failed("is not a folder", elsewhere), false),
        Err(error) => return (check.failed(error, elsewhere), false),
    };
    if let Err(error) = access(path, Access::WRITE_OK | Access::EXEC_OK) {
        let error = io::Error::from(error);
        let remedy = match error.kind() {
            ErrorKind::ReadOnlyFilesystem => format!("remount it for writing, or set {key} to another disk"),
            _ => "run doctor as the relay's user; if it is, chown the folder to that user".to_owned(),
        };
        return (check.failed(format!("not writable ({error})"), remedy), false);
    }
    if let Err(Error::NetworkFilesystem { filesystem, .. }) = survey(path).filesystem {
        let text = format!("is on {filesystem}, a network filesystem, which the relay refuses");
        return (check.failed(text, format!("set {key} to a local disk")), false);
    }
    if mode & 0o007 != 0 {
        let text = "is accessible to everybody on this machine, and holds message bodies";
        return (check.warning(text, format!("chmod 700 {}", path.display())), true);
    }
    (check.ok("writable, on a local disk"), true)
}

/// Whether SQLite was compiled with the flags that the tests run with.
pub(super) fn sqlite() -> CheckResult {
    let check = DoctorCheck::new("sqlite", "");
    let build = match SqliteBuild::read() {
        Ok(build) => build,
        Err(error) => return check.failed(format!("cannot open a database in memory ({error})"), "reinstall wxrelay"),
    };
    match build.differences() {
        None => check.ok(format!("{}, built with the tested options", build.version)),
        Some(differences) => check.warning(
            format!("{}, built with untested options: {differences}", build.version),
            "install a package, or build in the source folder: cargo reads .cargo/config.toml only there",
        ),
    }
}

/// The folder itself, or its nearest ancestor that exists.
fn nearest(path: &Path) -> PathBuf {
    let above = path.ancestors().find(|above| !above.as_os_str().is_empty() && above.exists());
    above.unwrap_or(Path::new(".")).to_owned()
}

/// Measures how long a flush takes.
async fn disk(folder: &Path) -> CheckResult {
    let check = DoctorCheck::new("disk", folder.display());
    let path = folder.join(format!(".wxrelay-doctor-{}", std::process::id()));
    let times = match run_detached(DISK_TIMEOUT, move || flushes(&path)).await {
        Some(Ok(times)) => times,
        Some(Err(error)) => {
            return check.failed(format!("cannot be flushed to ({error})"), "check the disk: dmesg, df");
        }
        None => return check.failed(format!("hangs: no flush within {DISK_TIMEOUT:?}"), "check the disk: dmesg"),
    };
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let text = format!("a flush takes {}, at most {} ({FLUSHES} of 4 KiB)", ms(median), ms(most));
    let remedy =
        "a push is answered after at least one flush: put queue.path on an SSD, or find out what else uses the disk";
    judge_times(check, [median, most], text, remedy)
}

/// Judges the times that a flush or a commit takes: the median, and the longest.
pub(super) fn judge_times(
    check: DoctorCheck,
    [median, most]: [Duration; 2],
    text: String,
    remedy: &'static str,
) -> CheckResult {
    if median >= FAILED_MEDIAN {
        check.failed(text, remedy)
    } else if median >= SLOW_MEDIAN || most >= SLOW_MAX {
        check.warning(text, remedy)
    } else {
        check.ok(text)
    }
}

/// The times of some flushes of a new file, the shortest first.
fn flushes(path: &Path) -> io::Result<Vec<Duration>> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let timed = (0..FLUSHES).map(|_| flush(&mut file)).collect::<io::Result<Vec<_>>>();
    fs::remove_file(path)?;
    let mut times = timed?;
    times.sort_unstable();
    Ok(times)
}

fn flush(file: &mut File) -> io::Result<Duration> {
    let started = Instant::now();
    file.write_all(&[0; 4096])?;
    file.sync_all()?;
    Ok(started.elapsed())
}

/// Whether the disk has free space for the store's maximum size.
fn space(path: &Path, max_size: u64, used: u64) -> CheckResult {
    let check = DoctorCheck::new("space", path.display());
    let disk = match statvfs(nearest(path)) {
        Ok(disk) => disk,
        Err(error) => return check.warning(format!("unknown ({})", io::Error::from(error)), "check queue.path"),
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let (need, size) = (max_size.saturating_sub(used), ByteSize);
    let text = format!("{} free; the store uses {} and may grow to {}", size(free), size(used), size(max_size));
    if disk.f_files > 0 && disk.f_favail == 0 {
        check.failed("no inode is free", "remove files from that disk, or set queue.path to another")
    } else if free < MIN_FREE_SPACE {
        check.failed(text, "free some disk space: on a full disk WeChat is answered 503")
    } else if free < need {
        check.warning(text, "lower queue.max_size or free some space: on a full disk WeChat is answered 503")
    } else {
        check.ok(text)
    }
}

/// The store's content, and the process that uses it.
fn contents(path: &Path, stats: Result<Stats, Error>) -> CheckResult {
    let check = DoctorCheck::new("store", path.display());
    let by =
        holder(path).map_or_else(|| "not in use".to_owned(), |holder| format!("used by {}", describe_holder(holder)));
    match stats {
        Ok(stats) if stats.unaccounted > 0 => check.failed(
            format!("{} deliveries are unaccounted for", stats.unaccounted),
            "keep the store and report what `wxrelay audit` says",
        ),
        Ok(stats) if !stats.damaged.is_empty() => check.failed(
            format!("damaged stores were moved aside: {}", stats.damaged.join(", ")),
            DamagedStore::REMEDY,
        ),
        Ok(stats) => check.ok(format!("schema {SCHEMA}, {} events, {by}", stats.events)),
        Err(Error::Missing { .. }) => check.ok("none yet: the relay creates it at its first start"),
        Err(Error::Outdated { found, .. }) => check.warning(
            format!("schema {found}, {by}; this release migrates it to {SCHEMA} at its start, and older releases cannot open it then"),
            "copy the store before the upgrade",
        ),
        Err(error) => check.failed(&error, error.remedy().unwrap_or_default()),
    }
}

/// Whether payloads are encrypted, and whether the configured keys decrypt all of them.
/// `place` is what somebody must be able to read to read the payloads.
pub(super) async fn encryption(store: impl Display, settings: &Settings, place: &str) -> CheckResult {
    let check = DoctorCheck::new("encryption", store);
    let status = async { Inspect::open(settings).await?.encryption_status().await };
    let Ok(found) = timeout(DISK_TIMEOUT, status).await else {
        return check.warning(
            format!("unknown: not all events were checked within {DISK_TIMEOUT:?}"),
            "run doctor again later",
        );
    };
    // The check `store` reports a store that cannot be read.
    let found: EncryptionStatus = found.unwrap_or_default();
    let keys: Vec<Fingerprint> = settings.encryption_keys.iter().map(EncryptionKey::fingerprint).collect();
    let missing: Vec<_> = found.keys.iter().filter(|key| !keys.contains(key)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return check.failed(
            format!("events are encrypted with {}, which queue.encryption_keys lacks", missing.join(", ")),
            "put that key back, behind the first one: the relay does not start without it",
        );
    }
    let Some((first, older)) = keys.split_first() else {
        return check.ok(format!("off: everybody who can read the {place} can read the payloads"));
    };
    let mut text = format!("payloads are encrypted with {first}");
    for key in older {
        let use_of = if found.keys.contains(key) { "older ones with" } else { "and none any more with" };
        text += &format!(", {use_of} {key}");
    }
    if found.in_clear {
        text += "; older events are not encrypted";
    }
    check.ok(text)
}

/// The process that uses the store.
pub(super) fn holder(path: &Path) -> Option<LockHolder> {
    if path.is_dir() { survey(path).holder } else { None }
}

fn describe_holder(LockHolder { pid }: LockHolder) -> String {
    let Some(pid) = pid else { return "an unknown process".to_owned() };
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) if name.trim() == "wxrelay" => format!("a running wxrelay, process {pid}"),
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}"),
    }
}

/// The limit of open files compared with what the relay may need: the running relay's limit where it is known, else our
/// own.
pub(super) fn files(config: &Config, holder: Option<LockHolder>) -> CheckResult {
    let check = DoctorCheck::new("files", "");
    let running = holder.and_then(|holder| limit_of(holder.pid?));
    let (limit, whose) = match running {
        Some(limit) => (limit, "the running relay's limit"),
        // `serve` raises the soft limit to the hard one.
        None => (getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX), "the limit of this shell"),
    };
    let connections = MAX_CONNECTIONS as u64;
    let deliveries: u64 = config.targets.iter().map(|settings| settings.concurrency as u64).sum();
    let need = connections + deliveries + OTHER_FILES;
    let text =
        format!("{whose} is {limit} open files; {connections} connections and {deliveries} deliveries may need {need}");
    let remedy = descriptors::REMEDY;
    if limit < MIN_FILES {
        check.failed(text, remedy)
    } else if limit < need {
        check.warning(text, remedy)
    } else {
        check.ok(text)
    }
}

/// The soft limit of another process, if the system shows it.
fn limit_of(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}
