//! The stage: a relay with the embedded queue, and stand-ins for WeChat, Authing and two handlers, all on loopback.

use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::cli::keygen;
use crate::cli::simulate::{Answer, Fresh, Kind, Parties, Sender, ServerUrl, Timing};
use crate::cli::sink::{self, Delivery, Sink};
use crate::config;
use crate::queue::{Audit, Inspect};
use crate::secret::Secret;
use crate::wechat::Credentials;

/// The user of the story.
pub(super) const USER: &str = "oDemoUser_000000000000000001";
const ACCOUNT: &str = "gh_demo00000000";
const APP_ID: &str = "wx0123456789abcdef";
/// How long a stand-in waits for what should come at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Everything the story needs.
pub(super) struct Stage {
    pub(super) app: Arc<App>,
    pub(super) wechat: Sender,
    pub(super) login: Sink,
    pub(super) crm: Sink,
    pub(super) stats: Sink,
    pub(super) url: ServerUrl,
    pub(super) folder: Folder,
    pub(super) token: Secret,
    pub(super) key: Secret,
}

impl Stage {
    /// Starts everything.
    pub(super) async fn set() -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let (token, key) = (keygen::token()?, keygen::encoding_aes_key()?);
        let login = sink::start(sink::Options::default()).await?;
        let reply = Some("crm says: your order is on its way".to_owned());
        let crm = sink::start(sink::Options { reply, ..sink::Options::default() }).await?;
        let stats = sink::start(sink::Options::default()).await?;
        let file = folder.path().join("config.toml");
        let script = script(&token, &key, [&login, &crm, &stats], folder.path());
        File::options().write(true).create_new(true).mode(0o600).open(&file)?.write_all(script.as_bytes())?;
        let config = config::load(Some(&file), [], &[]).map_err(|errors| {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("the demo's own configuration: {}", errors.join("; "))
        })?;
        let wechat = once(config.accounts.first().context("an account")?.credentials.clone());
        let app = App::start(config).await?;
        // Nobody reloads a demo: who asks is told so.
        drop(app.take_reloads());
        let address = app.push_addresses().first().context("a listener")?;
        let url = format!("http://{address}/wechat/events").parse()?;
        Ok(Self { app, wechat, login, crm, stats, url, folder, token, key })
    }

    /// Pushes what a user does; gives the clear text too, for a second push of the same.
    pub(super) async fn push(&self, kind: &Kind) -> anyhow::Result<(Answer, String)> {
        let clear = clear(kind)?;
        let answer = self.wechat.push(&self.url, &clear, USER).await?;
        Ok((answer, clear))
    }

    /// What WeChat shares with the relay.
    pub(super) fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(self.app.config().accounts.first().context("an account")?.credentials.clone())
    }

    /// The ledger once nothing waits any more.
    pub(super) async fn settled(&self) -> anyhow::Result<Audit> {
        let settling = async {
            loop {
                let audit = self.audit()?;
                if audit.counts.pending == 0 {
                    return anyhow::Ok(audit);
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, settling).await.context("deliveries are still pending")?
    }

    /// The ledger as it is.
    pub(super) fn audit(&self) -> anyhow::Result<Audit> {
        Ok(Inspect::open(&self.folder.path().join("data"))?.audit()?)
    }
}

/// WeChat without its patience: one try.
pub(super) fn once(credentials: Credentials) -> Sender {
    Sender::new(credentials).with_timing(Timing { tries: 1, ..Timing::default() })
}

/// The clear text of what the user does.
pub(super) fn clear(kind: &Kind) -> anyhow::Result<String> {
    Ok(kind.clear_xml(Parties { openid: USER, account: ACCOUNT }, &Fresh::now()?))
}

/// The next delivery that a stand-in gets.
pub(super) async fn next(sink: &mut Sink) -> anyhow::Result<Delivery> {
    match timeout(PATIENCE, sink.received.recv()).await {
        Ok(Some(delivery)) => Ok(delivery),
        Ok(None) | Err(_) => bail!("nothing was delivered within {PATIENCE:?}"),
    }
}

fn script(token: &Secret, key: &Secret, [login, crm, stats]: [&Sink; 3], folder: &Path) -> String {
    let (token, key, data) = (token.expose(), key.expose(), folder.join("data"));
    let (login, crm, stats) = (login.address, crm.address, stats.address);
    format!(
        r#"[server]
listen = ["127.0.0.1:0"]

[admin]
listen = "127.0.0.1:0"

[queue]
path = {data:?}

[accounts.demo]
path = "/wechat/events"
app_id = "{APP_ID}"
token = "{token}"
encoding_aes_key = "{key}"
mode = "secure"

[targets.login]
provider = "authing"
base_url = "http://{login}"
identifier = "demo"
user_pool_id = "0123456789abcdef01234567"

[targets.crm]
url = "http://{crm}/wechat"
format = "json"

[targets.stats]
url = "http://{stats}/events"
format = "json"

[[accounts.demo.routes]]
match = {{ event = "subscribe" }}
to = ["login"]
reply = {{ text = "Welcome!" }}

[[accounts.demo.routes]]
match = {{ event = "SCAN" }}
to = ["login"]

[[accounts.demo.routes]]
match = {{ msg_type = "text" }}
to = ["crm"]
reply = "crm"

[[accounts.demo.routes]]
otherwise = true
to = ["crm", "stats"]
"#
    )
}

/// A folder of this process's own, gone at its end.
pub(super) struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let name = format!("wxrelay-demo-{}-{:08x}", std::process::id(), getrandom::u32()?);
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("can't make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left over: {error}", self.0.display());
        }
    }
}
