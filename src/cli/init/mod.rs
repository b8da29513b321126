//! `wxrelay init`: a first configuration with fresh secrets, and the next steps; with `--systemd` as a service.
//!
//! Invariants: no file is overwritten; secrets are readable by their owner only; what is written passes `check`; secrets
//! are printed on a terminal only; no flag is ignored.

mod config_text;
mod instructions;
mod questions;
mod systemd;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};

use super::fixable::fixable;
use super::keygen;
use super::output;
use super::simulate::{ServerUrl, secret};
use crate::secret::Secret;
use crate::wechat::{AesKey, Mode};

/// The mode of files that everybody may read, such as a unit; and of a secret.
const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

/// `wxrelay init`
#[derive(clap::Args)]
pub struct Args {
    /// Write into this folder, which is created if it does not exist
    #[arg(long, default_value = ".", conflicts_with = "systemd")]
    dir: PathBuf,
    /// Set up the systemd service: /etc/wxrelay, its permissions and credentials, and the unit with its drop-in
    #[arg(long)]
    systemd: bool,
    /// Write below this folder instead of /, for an image
    #[arg(long, value_name = "DIR", default_value = "/", requires = "systemd")]
    root: PathBuf,
    /// Name the account in the configuration
    #[arg(long, value_name = "NAME", default_value = "main", value_parser = name)]
    account: String,
    /// Set the account's AppID, such as wx0123456789abcdef [default: a placeholder]
    #[arg(long, value_parser = word)]
    app_id: Option<String>,
    /// Set the security mode: secure, compatible, or plaintext (test accounts) [default: secure]
    #[arg(long)]
    mode: Option<Mode>,
    /// Keep this token from WeChat's console [default: a fresh one]
    #[arg(long, value_parser = secret)]
    token: Option<Secret>,
    /// Keep this EncodingAESKey from WeChat's console [default: a fresh one]
    #[arg(long, value_parser = secret)]
    key: Option<Secret>,
    /// Set the path of the server URL
    #[arg(long, default_value = "/wechat/events", value_parser = url_path)]
    path: String,
    /// Listen on this address
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Print this scheme and host in the instructions, such as https://wx.example.com
    #[arg(long, value_name = "URL", default_value = "https://YOUR-DOMAIN")]
    public_url: String,
    /// Store events in this folder [default: /var/lib/wxrelay if DIR is in /etc, else DIR/data]
    #[arg(long, value_name = "DIR", conflicts_with = "systemd")]
    data: Option<PathBuf>,
    /// Deliver events to the handler at this URL
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000/wechat")]
    handler: ServerUrl,
    /// Add a target for this identity provider
    #[arg(long, value_enum)]
    provider: Option<ProviderChoice>,
    /// Set the connection's identifier, such as my-connection (Authing, GenAuth)
    #[arg(long, value_name = "ID", value_parser = word, required_if_eq_any([("provider", "authing"), ("provider", "genauth")]))]
    identifier: Option<String>,
    /// Set the user pool's ID (Authing, GenAuth)
    #[arg(long, value_name = "ID", value_parser = word, required_if_eq_any([("provider", "authing"), ("provider", "genauth")]))]
    user_pool_id: Option<String>,
    /// Set the tenant's domain, such as tenant.example.com (BambooCloud)
    #[arg(long, value_parser = word, required_if_eq("provider", "bamboocloud"))]
    domain: Option<String>,
    /// Set the authentication source's ID (BambooCloud)
    #[arg(long, value_name = "ID", value_parser = word, required_if_eq("provider", "bamboocloud"))]
    idp_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ProviderChoice {
    Authing,
    Genauth,
    Bamboocloud,
}

impl fmt::Display for ProviderChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authing => "Authing",
            Self::Genauth => "GenAuth",
            Self::Bamboocloud => "BambooCloud",
        })
    }
}

impl Args {
    fn mode(&self) -> Mode {
        self.mode.unwrap_or(Mode::Secure)
    }

    /// Whether the operator has said nothing of the account, so that questions help.
    fn is_bare(&self) -> bool {
        let given = [self.app_id.is_some(), self.mode.is_some(), self.token.is_some(), self.key.is_some()];
        self.provider.is_none() && given == [false; 4]
    }

    /// The keys of the provider's URL with their values. The second one is the one to keep secret: without it nobody
    /// finds the URL.
    fn provider_ids(&self, provider: ProviderChoice) -> [(&'static str, Option<&str>); 2] {
        match provider {
            ProviderChoice::Authing | ProviderChoice::Genauth => {
                [("identifier", self.identifier.as_deref()), ("user_pool_id", self.user_pool_id.as_deref())]
            }
            ProviderChoice::Bamboocloud => [("domain", self.domain.as_deref()), ("idp_id", self.idp_id.as_deref())],
        }
    }

    /// What is wrong with flags that would have no effect beside the others.
    fn ignored(&self) -> Option<String> {
        if self.key.is_some() && self.mode() == Mode::Plaintext {
            return Some("--key: there is no EncodingAESKey in plaintext mode".to_owned());
        }
        let used = self.provider.map(|provider| self.provider_ids(provider).map(|(key, _)| key)).unwrap_or_default();
        let of_providers = [
            ("identifier", "--identifier", "authing or genauth", &self.identifier),
            ("user_pool_id", "--user-pool-id", "authing or genauth", &self.user_pool_id),
            ("domain", "--domain", "bamboocloud", &self.domain),
            ("idp_id", "--idp-id", "bamboocloud", &self.idp_id),
        ];
        let (_, flag, provider, _) =
            of_providers.into_iter().find(|(key, _, _, given)| given.is_some() && !used.contains(key))?;
        Some(format!("{flag} is only valid together with --provider {provider}"))
    }
}

/// A file to write.
struct NewFile {
    path: PathBuf,
    text: String,
    mode: u32,
}

/// Writes the files and prints the next steps.
pub async fn run(mut args: Args) -> anyhow::Result<ExitCode> {
    if let Some(problem) = args.ignored() {
        writeln!(output::stderr(), "error: {problem}\n\nFor more information, try '--help'.")?;
        return Ok(ExitCode::from(2));
    }
    if args.is_bare() && questions::can_ask() {
        questions::ask(&mut args)?;
    }
    let dir = match args.systemd {
        true => systemd::below(&std::path::absolute(&args.root)?, systemd::FOLDER),
        false => std::path::absolute(&args.dir)?,
    };
    let token = args.token.clone().map_or_else(keygen::token, Ok)?;
    let key = args.key.clone().map_or_else(keygen::encoding_aes_key, Ok)?;
    check_token(token.expose()).map_err(|problem| anyhow::anyhow!("--token: {problem}"))?;
    AesKey::parse(key.expose()).context("--key")?;

    let mut secrets = vec![("token", token.expose().to_owned())];
    if args.mode() != Mode::Plaintext {
        secrets.push(("encoding_aes_key", key.expose().to_owned()));
    }
    if let (true, Some(provider)) = (args.systemd, args.provider) {
        let [_, (name, id)] = args.provider_ids(provider);
        secrets.push((name, id.unwrap_or_default().to_owned()));
    }
    let private = secrets.iter().map(|(name, text)| new_file(&dir, name, format!("{text}\n"), PRIVATE));
    let config = config_text::config(&args, &dir);
    let written = if args.systemd {
        let names: Vec<_> = secrets.iter().map(|(name, _)| *name).collect();
        let files = [new_file(&dir, "config.toml", config, PUBLIC)].into_iter().chain(private);
        systemd::write(&args.root, &dir, files.collect(), &names)?
    } else {
        let files: Vec<_> = [new_file(&dir, "config.toml", config, PRIVATE)].into_iter().chain(private).collect();
        refuse_existing(&files, "move it away, or choose another --dir")?;
        write(&files, 0o700)?;
        String::new()
    };
    let mut out = output::stdout();
    let show = output::is_terminal();
    let shown = |secret: &Secret, file: &str| match show {
        true => secret.expose().to_owned(),
        false => format!("the content of {}", dir.join(file).display()),
    };
    let (token, key) = (shown(&token, "token"), shown(&key, "encoding_aes_key"));
    out.write_all((written + &instructions::steps(&args, &dir, &token, &key)).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn new_file(dir: &Path, name: &str, text: String, mode: u32) -> NewFile {
    NewFile { path: dir.join(name), text, mode }
}

/// Before the first file is written, so that all are or none.
fn refuse_existing(files: &[NewFile], remedy: &str) -> anyhow::Result<()> {
    for NewFile { path, .. } in files {
        ensure!(!path.exists(), fixable(format_args!("{} exists already", path.display()), remedy));
    }
    Ok(())
}

/// Writes all files, and makes the folders that are missing with this mode.
fn write(files: &[NewFile], folder_mode: u32) -> anyhow::Result<()> {
    for NewFile { path, text, mode } in files {
        let failed = |verb, path: &Path| {
            let remedy = "choose another --dir, or run it as a user that may write there";
            fixable(format_args!("can't {verb} {}", path.display()), remedy)
        };
        if let Some(folder) = path.parent() {
            create_folder(folder, folder_mode).with_context(|| failed("create", folder))?;
        }
        let opened = OpenOptions::new().write(true).create_new(true).mode(*mode).open(path);
        let written = opened.and_then(|mut opened| {
            opened.write_all(text.as_bytes())?;
            // Whatever the umask took away.
            fs::set_permissions(path, Permissions::from_mode(*mode))
        });
        written.with_context(|| failed("write", path))?;
    }
    Ok(())
}

/// Creates a folder and its parents, unless they exist, with this mode whatever the umask.
fn create_folder(folder: &Path, mode: u32) -> io::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_folder(parent, mode)?;
    }
    DirBuilder::new().mode(mode).create(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(mode))
}

/// Whether WeChat's console would take the token.
fn check_token(token: &str) -> Result<(), &'static str> {
    let sound = (3..=32).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_alphanumeric());
    if sound { Ok(()) } else { Err("expected 3 to 32 letters and digits, as WeChat's console accepts them") }
}

fn name(text: &str) -> Result<String, &'static str> {
    let sound = !text.is_empty() && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    if sound { Ok(text.to_owned()) } else { Err("expected lower-case letters, digits, `_` and `-`") }
}

/// IDs and host names, without characters that have a meaning in URLs.
fn word(text: &str) -> Result<String, &'static str> {
    let sound = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
    if sound { Ok(text.to_owned()) } else { Err("expected letters, digits, `-`, `_`, `.` and `:`") }
}

fn url_path(text: &str) -> Result<String, &'static str> {
    let sound = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !b"?#\"\\".contains(&b));
    if sound { Ok(text.to_owned()) } else { Err("expected a path such as /wechat/events") }
}
