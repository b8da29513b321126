//! The text of the configuration that `init` writes.

use std::path::{Path, PathBuf};

use super::{Args, ProviderChoice};
use crate::cli::console_paths::{APP_ID, SERVER_SETTINGS};
use crate::config::PLACEHOLDER;
use crate::wechat::Mode;

/// The whole file. `dir` is where it will be.
pub(super) fn config(args: &Args, dir: &Path) -> String {
    let data = args.data.clone().unwrap_or_else(|| match args.systemd || dir.starts_with("/etc") {
        true => PathBuf::from("/var/lib/wxrelay"),
        false => dir.join("data"),
    });
    let mut text = format!(
        "# Written by `wxrelay init`. Check it with `wxrelay check`.\n\n\
         [server]\nlisten = [{}]\n\n\
         [admin]\nlisten = \"127.0.0.1:9180\"\n\n\
         [queue]\ntype = \"embedded\"\npath = {}\n\n\
         [accounts.{}]\npath = {}\n\
         # AppID: {}\n#   old console: {}\napp_id = {}\n\
         # Token, EncodingAESKey and mode, the same as in the console: {}\n#   old console: {}\n\
         token = {}\n",
        quoted(&args.listen.to_string()),
        quoted(&data.to_string_lossy()),
        args.account,
        quoted(&args.path),
        APP_ID.path,
        APP_ID.old_path,
        quoted(args.app_id.as_deref().unwrap_or(PLACEHOLDER)),
        SERVER_SETTINGS.path,
        SERVER_SETTINGS.old_path,
        stored(args, "token"),
    );
    if args.mode() != Mode::Plaintext {
        text += &format!("encoding_aes_key = {}\n", stored(args, "encoding_aes_key"));
    }
    text += &format!("mode = \"{}\"\n", args.mode());
    match args.provider {
        // Without routes, follows and scans go to the identity provider and everything else to the handler.
        Some(provider) => {
            text += &reply_routes(&args.account);
            text += &identity_target(args, provider);
        }
        None => {
            text += &format!("\n[[accounts.{}.routes]]\notherwise = true\nto = [\"handler\"]\n", args.account);
            text += "# Take the # away, and the handler's answer becomes the user's reply.\n# reply = \"handler\"\n";
        }
    }
    text += &format!("\n[targets.handler]\nurl = {}\nformat = \"json\"\n", quoted(&args.handler.to_string()));
    text
}

/// The routes that an account with an identity provider has by default, with `reply`, as a comment.
fn reply_routes(account: &str) -> String {
    format!(
        "\n# Without routes, follows and scans go to `login` and all else to `handler`, whose answers reach no user.\n\
         # Take the # of these lines away, and the handler's answers become replies.\n\
         # [[accounts.{account}.routes]]\n\
         # match = {{ event = [\"subscribe\", \"SCAN\"] }}\n\
         # to = [\"login\"]\n\
         # [[accounts.{account}.routes]]\n\
         # otherwise = true\n\
         # to = [\"handler\"]\n\
         # reply = \"handler\"\n"
    )
}

fn identity_target(args: &Args, provider: ProviderChoice) -> String {
    let name = provider.to_string().to_ascii_lowercase();
    let mut text = format!("\n[targets.login]\nrole = \"identity\"\nprovider = {}\n", quoted(&name));
    let [(key, value), (secret_key, secret_value)] = args.provider_ids(provider);
    text += &format!("{key} = {}\n", quoted(value.unwrap_or_default()));
    let secret_value = match args.systemd {
        // Everybody on the machine can read the service's configuration.
        true => stored(args, secret_key),
        false => quoted(secret_value.unwrap_or_default()),
    };
    text + &format!("{secret_key} = {secret_value}\n")
}

/// Where the relay finds a secret that is in the file of this name.
fn stored(args: &Args, name: &str) -> String {
    format!("{{ {} = \"{name}\" }}", if args.systemd { "credential" } else { "file" })
}

/// A TOML basic string: its escapes include all of JSON's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
