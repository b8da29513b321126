//! The machine: the store's folder, what is in it and whether that is sealed, its disk's speed and room, and how many files may be open.
//!
//! Nothing of a store is changed. The one thing written is a small file beside it, to time its flush, which is removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use rustix::fs::{Access, access, statvfs};
use rustix::process::{Resource, getrlimit};
use tokio::time::Instant;

use super::aside;
use super::report::{Check, Findings, Line};
use crate::config::Config;
use crate::queue::{EncryptionKey, Error, Fingerprint, Holder, Inspect, SCHEMA, Settings, SqliteBuild, survey};
use crate::server::Options;

/// How long the disk may be waited for.
const PATIENCE: Duration = Duration::from_secs(20);
const FLUSHES: usize = 15;
/// A push is answered after at least one flush, and WeChat waits 5 s.
const SLOW: Duration = Duration::from_millis(25);
const SLOW_AT_MOST: Duration = Duration::from_millis(500);
const TOO_SLOW: Duration = Duration::from_secs(1);
/// Less is as good as none: the store keeps back up to so much.
const LEAST_ROOM: u64 = 64 << 20;
/// Files open besides connections: the store, its readers, listeners, certificates.
const OTHER_FILES: u64 = 64;
/// With less the relay cannot do its work at all.
const LEAST_FILES: u64 = 256;

/// The folder, the disk, the room, the store.
pub(super) async fn store(settings: Settings) -> Findings {
    let mut findings = Findings::default();
    let (line, usable) = folder(&settings.path);
    findings.lines.push(line);
    if usable {
        findings.lines.push(disk(&settings.path).await);
    }
    let used = match Inspect::open(&settings.path).and_then(|store| store.stats()) {
        Ok(stats) => stats.bytes,
        Err(_) => 0,
    };
    findings.lines.push(space(&settings, used));
    findings.lines.push(contents(&settings.path));
    findings.lines.push(encryption(&settings).await);
    findings
}

/// Whether the folder is there, ours, and on a disk that a store can be on; whether its disk can be timed.
fn folder(path: &Path) -> (Line, bool) {
    let check = Check::new("folder", path.display());
    let elsewhere = "set queue.path to a folder that the relay's user may write to";
    if !path.exists() {
        let parent = nearest(path);
        return match access(&parent, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) if parent.is_dir() => {
                (check.warning("missing: the relay makes it when it starts", "start it, or look at queue.path"), false)
            }
            Ok(()) => (check.failed(format!("missing, and {} is no folder", parent.display()), elsewhere), false),
            Err(error) => {
                let why = io::Error::from(error);
                let text = format!("missing, and cannot be made in {} ({why})", parent.display());
                (check.failed(text, elsewhere), false)
            }
        };
    }
    let mode = match fs::metadata(path) {
        Ok(found) if found.is_dir() => found.permissions().mode(),
        Ok(_) => return (check.failed("is no folder", elsewhere), false),
        Err(error) => return (check.failed(error, elsewhere), false),
    };
    if let Err(error) = access(path, Access::WRITE_OK | Access::EXEC_OK) {
        let error = io::Error::from(error);
        let remedy = match error.kind() {
            ErrorKind::ReadOnlyFilesystem => "remount it for writing, or set queue.path to another disk",
            _ => "run the doctor as the relay's user; if it is, chown the folder to it",
        };
        return (check.failed(format!("cannot be written ({error})"), remedy), false);
    }
    if let Err(Error::NetworkFilesystem { filesystem, .. }) = survey(path).filesystem {
        let text = format!("is on {filesystem}, a network filesystem, which the relay refuses");
        return (check.failed(text, "set queue.path to a local disk"), false);
    }
    if mode & 0o007 != 0 {
        let text = "can be entered by everybody on this machine, and message bodies are in it";
        return (check.warning(text, format!("chmod 700 {}", path.display())), true);
    }
    (check.ok("can be written, on a local disk"), true)
}

/// Whether SQLite is compiled as the tests have it.
pub(super) fn sqlite() -> Line {
    let check = Check::new("sqlite", "");
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

/// The folder itself or the nearest one above it that exists.
fn nearest(path: &Path) -> PathBuf {
    let above = path.ancestors().find(|above| !above.as_os_str().is_empty() && above.exists());
    above.unwrap_or(Path::new(".")).to_owned()
}

/// How long a flush takes.
async fn disk(folder: &Path) -> Line {
    let check = Check::new("disk", folder.display());
    let path = folder.join(format!(".wxrelay-doctor-{}", std::process::id()));
    let times = match aside(PATIENCE, move || flushes(&path)).await {
        Some(Ok(times)) => times,
        Some(Err(error)) => {
            return check.failed(format!("cannot be flushed to ({error})"), "look at the disk: dmesg, df");
        }
        None => return check.failed(format!("hangs: no flush within {PATIENCE:?}"), "look at the disk: dmesg"),
    };
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let text = format!("a flush takes {}, at most {} ({FLUSHES} of 4 KiB)", ms(median), ms(most));
    let remedy =
        "a push is answered after at least one flush: put queue.path on an SSD, or find out what else keeps it busy";
    if median >= TOO_SLOW {
        check.failed(text, remedy)
    } else if median >= SLOW || most >= SLOW_AT_MOST {
        check.warning(text, remedy)
    } else {
        check.ok(text)
    }
}

/// The times of some flushes of a fresh file, the shortest first.
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

/// Whether the disk has room for what the store may grow to.
fn space(settings: &Settings, used: u64) -> Line {
    let check = Check::new("space", settings.path.display());
    let disk = match statvfs(nearest(&settings.path)) {
        Ok(disk) => disk,
        Err(error) => return check.warning(format!("not known ({})", io::Error::from(error)), "look at queue.path"),
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let (need, size) = (settings.max_size.saturating_sub(used), ByteSize);
    let text =
        format!("{} free; the store holds {} and may grow to {}", size(free), size(used), size(settings.max_size));
    if disk.f_files > 0 && disk.f_favail == 0 {
        check.failed("no inode is free", "remove files from that disk, or set queue.path to another")
    } else if free < LEAST_ROOM {
        check.failed(text, "free some disk space: on a full disk WeChat is answered 503")
    } else if free < need {
        check.warning(
            text,
            "lower queue.max_size or free some space: the disk would be full first, and then WeChat is answered 503",
        )
    } else {
        check.ok(text)
    }
}

/// What is in the store, and who uses it.
fn contents(path: &Path) -> Line {
    let check = Check::new("store", path.display());
    let by = holder(path).map_or_else(|| "used by nobody now".to_owned(), |holder| format!("used by {}", who(holder)));
    match Inspect::open(path).and_then(|store| store.stats()) {
        Ok(stats) if stats.unaccounted > 0 => check.failed(
            format!("{} deliveries are unaccounted for", stats.unaccounted),
            "keep the store and report what `wxrelay audit` says",
        ),
        Ok(stats) => check.ok(format!("schema {SCHEMA}, {} events, {by}", stats.events)),
        Err(Error::Missing { .. }) => check.ok("none yet: the relay makes it when it first starts"),
        Err(Error::Outdated { found, .. }) => check.warning(
            format!("schema {found}, {by}; this release makes it {SCHEMA} when it starts, and there is no way back"),
            "copy the store before the upgrade",
        ),
        Err(error) => check.failed(&error, error.remedy().unwrap_or_default()),
    }
}

/// Whether payloads are sealed, and whether all that are can be opened.
async fn encryption(settings: &Settings) -> Line {
    let check = Check::new("encryption", settings.path.display());
    let folder = settings.path.clone();
    let Some(found) = aside(PATIENCE, move || Inspect::open(&folder).and_then(|store| store.sealing())).await else {
        return check
            .warning(format!("not known: not all events were looked at within {PATIENCE:?}"), "ask again later");
    };
    // Where the store cannot be read, another line says so.
    let found = found.unwrap_or_default();
    let keys: Vec<Fingerprint> = settings.encryption_keys.iter().map(EncryptionKey::fingerprint).collect();
    let missing: Vec<_> = found.keys.iter().filter(|key| !keys.contains(key)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return check.failed(
            format!("events are sealed by {}, which queue.encryption_keys lacks", missing.join(", ")),
            "put that key back, behind the first one: the relay does not start without it",
        );
    }
    let Some((first, older)) = keys.split_first() else {
        return check.ok("off: payloads are kept as they come, for whoever can read the folder");
    };
    let mut text = format!("payloads are sealed by {first}");
    for key in older {
        let use_of = if found.keys.contains(key) { "older ones by" } else { "and none any more by" };
        text += &format!(", {use_of} {key}");
    }
    if found.in_clear {
        text += "; events from before are still in the clear";
    }
    check.ok(text)
}

/// The process that uses the store.
pub(super) fn holder(path: &Path) -> Option<Holder> {
    if path.is_dir() { survey(path).holder } else { None }
}

fn who(Holder { pid }: Holder) -> String {
    let Some(pid) = pid else { return "a process that did not say who it is".to_owned() };
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) if name.trim() == "wxrelay" => format!("a running wxrelay, process {pid}"),
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}"),
    }
}

/// How many files the relay may have open, against what it may need: the running relay's limit where it is known, else
/// our own.
pub(super) fn files(config: &Config, holder: Option<Holder>) -> Line {
    let check = Check::new("files", "");
    let running = holder.and_then(|holder| limit_of(holder.pid?));
    let (limit, whose) = match running {
        Some(limit) => (limit, "the running relay's limit"),
        None => (getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), "the limit of this shell"),
    };
    let connections = Options::new(&config.server).max_connections as u64;
    let deliveries: u64 = config.targets.iter().map(|settings| settings.concurrency as u64).sum();
    let need = connections + deliveries + OTHER_FILES;
    let text =
        format!("{whose} is {limit} open files; {connections} connections and {deliveries} deliveries may need {need}");
    let remedy =
        "raise it: LimitNOFILE=65536 in the systemd unit, `ulimit -n 65536` in the shell, --ulimit nofile in Docker";
    if limit < LEAST_FILES {
        check.failed(text, remedy)
    } else if limit < need {
        check.warning(text, remedy)
    } else {
        check.ok(text)
    }
}

/// The soft limit of another process, where the system tells it.
fn limit_of(pid: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}
