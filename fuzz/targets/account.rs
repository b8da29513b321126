//! The account of the fuzz targets.

use wxrelay::secret::Secret;
use wxrelay::wechat::{AesKey, Credentials, Mode, Salt};

pub(crate) const TOKEN: &str = "weixin";

pub(crate) fn in_mode(mode: Mode) -> Credentials {
    Credentials {
        app_id: "wx0123456789abcdef".into(),
        token: Secret::new(TOKEN),
        previous_token: None,
        aes_key: AesKey::parse("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG").ok(),
        previous_aes_key: None,
        mode,
    }
}

pub(crate) fn salt() -> Salt {
    Salt::new(1_795_161_600, [7; 24])
}
