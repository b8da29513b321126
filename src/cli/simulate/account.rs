//! The account to simulate pushes for: from a configuration, or from flags.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};

use super::client::PushAnswer;
use super::url::ServerUrl;
use crate::cli::ConfigArgs;
use crate::cli::fixable::fixable;
use crate::deliver::Role;
use crate::push::Account;
use crate::route;
use crate::secret::Secret;
use crate::server::Listen;
use crate::wechat::{AesKey, Credentials, Message, Mode};

/// The flags that name an account.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Account")]
pub(super) struct AccountArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Use this account of the configuration [default: the only one]
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "token")]
    account: Option<String>,
    #[command(flatten)]
    given: CredentialArgs,
}

/// The flags that spell an account's credentials out.
#[derive(Clone, clap::Args)]
pub(crate) struct CredentialArgs {
    /// Use this token
    #[arg(long, global = true, value_parser = secret)]
    token: Option<Secret>,
    /// Use this EncodingAESKey
    #[arg(long, global = true, value_parser = secret)]
    key: Option<Secret>,
    /// Use this AppID
    #[arg(long, global = true)]
    app_id: Option<String>,
    /// Use this mode: plaintext, compatible or secure [default: secure with --key, else plaintext]
    #[arg(long, global = true)]
    mode: Option<Mode>,
}

impl AccountArgs {
    /// The account, with what its configuration says of it.
    pub(super) fn resolve(&self) -> anyhow::Result<SimulatedAccount> {
        if let Some(credentials) = self.given.credentials()? {
            return Ok(SimulatedAccount { credentials, url: None, routes: None, paths: String::new() });
        }
        let config = self.config.load()?;
        let account = choose(&config.accounts, self.account.as_deref())?;
        let tls = !config.server.tls.is_empty();
        // By the PROXY protocol the listener accepts only the load balancer.
        let listen = if config.server.proxy_protocol { &[][..] } else { config.server.listen.as_slice() };
        let handlers = config.targets.iter().map(|settings| &settings.target);
        let handlers = handlers.filter(|target| target.role == Role::Handler).map(|target| target.name.clone());
        Ok(SimulatedAccount {
            credentials: account.credentials.clone(),
            url: server_url(listen, tls, &account.path),
            paths: config.accounts.iter().map(|account| &*account.path).collect::<Vec<_>>().join(", "),
            routes: Some((account.routes.clone(), handlers.collect())),
        })
    }
}

/// The account to simulate pushes for.
pub(super) struct SimulatedAccount {
    pub(super) credentials: Credentials,
    /// Its server URL on this machine.
    pub(super) url: Option<ServerUrl>,
    /// Its routes, and the names of all handlers.
    routes: Option<(route::Table, Vec<Arc<str>>)>,
    /// The paths of all accounts; empty without a configuration.
    paths: String,
}

impl SimulatedAccount {
    /// What is known of a refusal beyond its status: where a redirect leads, and the paths of the configuration.
    pub(super) fn of_refusal(&self, answer: &PushAnswer) -> Option<String> {
        match (answer.status?, &answer.location) {
            (300..=399, Some(location)) => Some(format!("the Location was {location}")),
            (404, _) if !self.paths.is_empty() => Some(format!("the configuration has: {}", self.paths)),
            _ => None,
        }
    }

    /// What to do if a push has no reply and a handler gave one: where the configuration is known and asks none.
    pub(super) fn missing_reply(&self, clear: &str) -> Option<String> {
        let (routes, handlers) = self.routes.as_ref()?;
        let message = Message::parse(clear.as_bytes()).ok()?;
        let plan = routes.plan(&message);
        let handler = plan.targets.into_iter().find(|target| handlers.contains(target))?;
        let hint = format!("no route asks for a reply; if {handler} gives one, add reply = \"{handler}\" to its route");
        plan.reply.is_none().then_some(hint)
    }
}

impl CredentialArgs {
    /// The credentials; `None` if there is no `--token`.
    pub(crate) fn credentials(&self) -> anyhow::Result<Option<Credentials>> {
        let Some(token) = &self.token else {
            let lonely = self.key.is_some() || self.app_id.is_some() || self.mode.is_some();
            ensure!(
                !lonely,
                fixable("--key, --app-id and --mode go with --token", "give --token too, or none of them")
            );
            return Ok(None);
        };
        let mode = self.mode.unwrap_or(if self.key.is_some() { Mode::Secure } else { Mode::Plaintext });
        if mode != Mode::Plaintext && (self.key.is_none() || self.app_id.is_none()) {
            bail!("{mode} mode needs --key and --app-id beside --token");
        }
        let aes_key = self.key.as_ref().map(|key| AesKey::parse(key.expose())).transpose();
        Ok(Some(Credentials {
            app_id: self.app_id.as_deref().unwrap_or_default().into(),
            token: token.clone(),
            previous_token: None,
            aes_key: aes_key.context("--key")?,
            previous_aes_key: None,
            mode,
        }))
    }
}

fn choose<'a>(accounts: &'a [Account], name: Option<&str>) -> anyhow::Result<&'a Account> {
    let names = || accounts.iter().map(|account| &*account.name).collect::<Vec<_>>().join(", ");
    match (name, accounts) {
        (None, [only]) => Ok(only),
        (None, _) => {
            bail!(fixable(
                "the configuration has several accounts",
                format_args!("add --account with one of: {}", names())
            ))
        }
        (Some(name), _) => accounts.iter().find(|account| &*account.name == name).ok_or_else(|| {
            fixable(format_args!("unknown account `{name}`"), format_args!("use one of: {}", names())).into()
        }),
    }
}

/// The account's path at the first TCP listener with a port known beforehand.
fn server_url(listen: &[Listen], tls: bool, path: &str) -> Option<ServerUrl> {
    let mut addresses = listen.iter().filter_map(Listen::reachable);
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{}{path}", addresses.next()?).parse().ok()
}

/// Reads a flag as a secret.
#[expect(clippy::unnecessary_wraps, reason = "the shape that clap asks for")]
pub(crate) fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";

    fn given(token: bool, key: bool, app_id: bool, mode: Option<Mode>) -> CredentialArgs {
        CredentialArgs {
            token: token.then(|| Secret::new("AAAAA")),
            key: key.then(|| Secret::new(KEY)),
            app_id: app_id.then(|| "wx1".to_owned()),
            mode,
        }
    }

    #[test]
    fn the_mode_follows_from_the_key() {
        let mode = |flags: CredentialArgs| flags.credentials().unwrap().map(|credentials| credentials.mode);
        assert_eq!(mode(given(true, true, true, None)), Some(Mode::Secure));
        assert_eq!(mode(given(true, false, false, None)), Some(Mode::Plaintext));
        assert_eq!(mode(given(true, true, true, Some(Mode::Compatible))), Some(Mode::Compatible));
        assert_eq!(mode(given(false, false, false, None)), None);
    }

    #[test]
    fn half_an_account_is_refused() {
        assert!(given(true, true, false, None).credentials().is_err());
        assert!(given(true, false, true, Some(Mode::Secure)).credentials().is_err());
        assert!(given(false, true, true, None).credentials().is_err());
    }

    #[test]
    fn the_server_url_is_the_path_at_the_first_tcp_listener() {
        let listen = |addresses: &[&str]| -> Vec<Listen> {
            let tcp = addresses.iter().map(|address| Listen::Tcp(address.parse().unwrap()));
            [Listen::Systemd, Listen::Unix("/run/x.sock".into())].into_iter().chain(tcp).collect()
        };
        let url = |addresses, tls| server_url(&listen(addresses), tls, "/wx").map(|url| url.to_string());
        assert_eq!(url(&["0.0.0.0:8080", "10.0.0.1:81"], false).as_deref(), Some("http://127.0.0.1:8080/wx"));
        assert_eq!(url(&["[::]:8443"], true).as_deref(), Some("https://[::1]:8443/wx"));
        assert_eq!(url(&["127.0.0.1:0"], false), None);
        assert_eq!(url(&[], false), None);
    }
}
