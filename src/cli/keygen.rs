//! `wxrelay keygen`: generates secrets.

use std::io::Write;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::output;
use crate::secret::Secret;
use crate::wechat::envelope;

/// `wxrelay keygen`
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints a token, an EncodingAESKey, a webhook secret and a key for the store.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (token, key, secret, store_key) = (token()?, encoding_aes_key()?, webhook_secret()?, encryption_key()?);
    let (token, key, secret, store_key) = (token.expose(), key.expose(), secret.expose(), store_key.expose());
    let mut out = output::stdout();
    if args.json {
        let keys = json!({ "token": token, "encoding_aes_key": key, "secret": secret, "encryption_key": store_key });
        writeln!(out, "{keys}")?;
    } else {
        writeln!(out, "token             {token}")?;
        writeln!(out, "encoding_aes_key  {key}")?;
        writeln!(out, "secret            {secret}")?;
        writeln!(out, "encryption_key    {store_key}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A token: 32 letters and digits, the most that WeChat's console accepts.
pub fn token() -> Result<Secret, getrandom::Error> {
    Ok(Secret::new(envelope::generate_token(random()?)))
}

/// An EncodingAESKey: 43 letters and digits, as WeChat's console generates them.
pub fn encoding_aes_key() -> Result<Secret, getrandom::Error> {
    Ok(Secret::new(envelope::generate_key(random()?)))
}

/// A Standard Webhooks secret: `whsec_` and 32 bytes in base64.
pub fn webhook_secret() -> Result<Secret, getrandom::Error> {
    Ok(Secret::new(format!("whsec_{}", STANDARD.encode(random::<32>()?))))
}

/// A key for `queue.encryption_keys`: 32 bytes in base64.
pub fn encryption_key() -> Result<Secret, getrandom::Error> {
    Ok(Secret::new(STANDARD.encode(random::<32>()?)))
}

/// Bytes from the system's generator.
pub(super) fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], getrandom::Error> {
    let mut bytes = [0; LENGTH];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::EncryptionKey;

    #[test]
    fn secrets_have_the_form_that_wechat_and_handlers_take() {
        let (token, key, secret) = (token().unwrap(), encoding_aes_key().unwrap(), webhook_secret().unwrap());
        assert_eq!((token.expose().len(), key.expose().len()), (32, 43));
        assert!(token.expose().chars().chain(key.expose().chars()).all(|c| c.is_ascii_alphanumeric()));
        let bytes = STANDARD.decode(secret.expose().strip_prefix("whsec_").unwrap()).unwrap();
        assert_eq!(bytes.len(), 32);
        assert!(EncryptionKey::parse(encryption_key().unwrap().expose()).is_some());
    }

    #[test]
    fn no_two_tokens_are_the_same() {
        assert!(!token().unwrap().matches(token().unwrap().expose()));
    }
}
