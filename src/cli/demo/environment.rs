//! The demo's environment: a relay with a store of its own, and a simulated WeChat, Authing and two handlers, all on
//! loopback.

use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::HeaderName;
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::cli::keygen;
use crate::cli::output;
use crate::cli::simulate::{MessageAddresses, MessageIds, PushAnswer, PushKind, RetryTiming, ServerUrl, WechatClient};
use crate::cli::sink::{self, ReceivedDelivery, Sink};
use crate::config;
use crate::queue::{Audit, Inspect};
use crate::secret::Secret;
use crate::wechat::Credentials;

/// The user of the demo.
pub(super) const USER: &str = "oDemoUser_000000000000000001";
const ACCOUNT: &str = "gh_demo00000000";
const APP_ID: &str = "wx0123456789abcdef";
/// The header by which the stand-ins know the demo's relay.
const MARKER: &str = "demo-marker";
/// The longest wait for a delivery or a settled store.
const WAIT_LIMIT: Duration = Duration::from_secs(20);

pub(super) struct DemoEnvironment {
    pub(super) app: Arc<App>,
    pub(super) wechat: WechatClient,
    pub(super) login: Sink,
    pub(super) crm: Sink,
    pub(super) stats: Sink,
    pub(super) url: ServerUrl,
    pub(super) folder: TempFolder,
    pub(super) store: DemoStore,
}

/// The store of the demo's relay.
pub(super) struct DemoStore {
    /// The keys of `[queue]`.
    pub(super) keys: String,
    /// Where it is, for people.
    pub(super) note: String,
}

impl DemoEnvironment {
    /// Starts all peers, then the relay.
    pub(super) async fn start(store: Option<DemoStore>) -> anyhow::Result<Self> {
        let folder = TempFolder::new()?;
        let (token, key) = (keygen::token()?, keygen::encoding_aes_key()?);
        // Requests of other clients are not part of the demo.
        let marker = keygen::token()?;
        let options = sink::Options {
            marker: Some((HeaderName::from_static(MARKER), marker.expose().parse()?)),
            ..sink::Options::default()
        };
        let login = sink::start(options.clone()).await?;
        let reply = Some("crm says: your order is on its way".to_owned());
        let crm = sink::start(sink::Options { reply, ..options.clone() }).await?;
        let stats = sink::start(options).await?;
        let file = folder.path().join("config.toml");
        let in_folder = || DemoStore { keys: format!("path = {:?}", folder.path().join("data")), note: String::new() };
        let store = store.unwrap_or_else(in_folder);
        let text = |push: &str, admin: &str| {
            config_text([&token, &key, &marker], [&login, &crm, &stats], &store.keys, [push, admin])
        };
        let any_port = text("127.0.0.1:0", "127.0.0.1:0");
        File::options().write(true).create_new(true).mode(0o600).open(&file)?.write_all(any_port.as_bytes())?;
        let config = config::load(Some(&file), [], &[]).map_err(|errors| {
            let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("the demo's own configuration: {}", errors.join("; "))
        })?;
        let wechat = single_attempt_client(config.accounts.first().context("an account")?.credentials.clone());
        let app = App::start(config).await?;
        // A demo has no reloads: with the receiver dropped, a request for one fails.
        drop(app.take_reloads());
        let address = app.push_addresses().first().context("a listener")?;
        // For commands in another terminal.
        fs::write(&file, text(address, app.admin_address()))?;
        let url = format!("http://{address}/wechat/events").parse()?;
        Ok(Self { app, wechat, login, crm, stats, url, folder, store })
    }

    /// Sends a push; also returns its clear text, to send it again.
    pub(super) async fn push(&self, kind: &PushKind) -> anyhow::Result<(PushAnswer, String)> {
        let clear = clear_text(kind)?;
        let answer = self.wechat.push(&self.url, &clear, USER).await?;
        Ok((answer, clear))
    }

    pub(super) fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(self.app.config().accounts.first().context("an account")?.credentials.clone())
    }

    /// The counts once no delivery is pending.
    pub(super) async fn settled(&self) -> anyhow::Result<Audit> {
        let settling = async {
            loop {
                let audit = self.audit().await?;
                if audit.counts.pending == 0 {
                    return anyhow::Ok(audit);
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(WAIT_LIMIT, settling).await.context("deliveries are still pending")?
    }

    /// The current counts.
    pub(super) async fn audit(&self) -> anyhow::Result<Audit> {
        Ok(Inspect::open(&self.app.config().queue).await?.audit().await?)
    }
}

/// A client without retries.
pub(super) fn single_attempt_client(credentials: Credentials) -> WechatClient {
    WechatClient::new(credentials).with_timing(RetryTiming { tries: 1, ..RetryTiming::default() })
}

/// The clear text of a push.
pub(super) fn clear_text(kind: &PushKind) -> anyhow::Result<String> {
    Ok(kind.clear_xml(MessageAddresses { openid: USER, account: ACCOUNT }, &MessageIds::now()?))
}

/// The next delivery that a sink receives.
pub(super) async fn next_delivery(sink: &mut Sink) -> anyhow::Result<ReceivedDelivery> {
    match timeout(WAIT_LIMIT, sink.received.recv()).await {
        Ok(Some(delivery)) => Ok(delivery),
        Ok(None) | Err(_) => bail!("nothing was delivered within {WAIT_LIMIT:?}"),
    }
}

fn config_text(
    secrets: [&Secret; 3],
    [login, crm, stats]: [&Sink; 3],
    queue: &str,
    [push, admin]: [&str; 2],
) -> String {
    let [token, key, marker] = secrets.map(Secret::expose);
    let (login, crm, stats) = (login.address, crm.address, stats.address);
    format!(
        r#"[server]
listen = ["{push}"]

[admin]
listen = "{admin}"

[queue]
{queue}

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
headers = {{ {MARKER} = "{marker}" }}

[targets.crm]
url = "http://{crm}/wechat"
format = "json"
retry = ["500ms", "1s", "2s", "4s", "5s", "5s", "5s", "5s", "5s", "5s"]
headers = {{ {MARKER} = "{marker}" }}

[targets.stats]
url = "http://{stats}/events"
format = "json"
headers = {{ {MARKER} = "{marker}" }}

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

/// A temporary folder, removed on drop.
pub(super) struct TempFolder(PathBuf);

impl TempFolder {
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

impl Drop for TempFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            writeln!(output::stderr(), "{} cannot be removed: {error}", self.0.display()).ok();
        }
    }
}
