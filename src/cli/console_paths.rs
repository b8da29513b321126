//! Where things are in WeChat's console, for every text that a command prints or writes.
//!
//! In December 2025 the pages moved from mp.weixin.qq.com to developers.weixin.qq.com/platform. Some accounts still see
//! the old ones, so each text names both.

pub(super) struct ConsolePage {
    /// Its path since December 2025.
    pub(super) path: &'static str,
    /// Its path for accounts that still see the old console.
    pub(super) old_path: &'static str,
}

/// URL, Token, EncodingAESKey and mode.
pub(super) const SERVER_SETTINGS: ConsolePage = ConsolePage {
    path: "developers.weixin.qq.com/platform > 我的业务 > 公众号/服务号 > 基础信息 > 域名与消息推送配置",
    old_path: "mp.weixin.qq.com > 设置与开发 > 开发接口管理 > 基本配置",
};

/// The AppID.
pub(super) const APP_ID: ConsolePage = ConsolePage {
    path: "developers.weixin.qq.com/platform > 我的业务 > 公众号/服务号 > 基础信息",
    old_path: "mp.weixin.qq.com > 设置与开发 > 开发接口管理 > 基本配置",
};

/// AppSecret and IP list.
pub(super) const DEVELOPER_KEYS: ConsolePage = ConsolePage {
    path: "developers.weixin.qq.com/platform > 我的业务 > 公众号/服务号 > 基础信息 > 开发密钥",
    old_path: "mp.weixin.qq.com > 设置与开发 > 开发接口管理 > 基本配置",
};

/// The alarms that `why` explains.
pub(super) const ALARMS: ConsolePage = ConsolePage {
    path: "developers.weixin.qq.com/platform > 我的业务 > 公众号/服务号 > 接口管理 > 接口告警",
    old_path: "mp.weixin.qq.com > 设置与开发 > 开发接口管理 > 运维中心",
};

/// The domains of login callbacks, of a website app and of an account; these pages did not move.
pub(super) const CALLBACK_DOMAINS: &str = "open.weixin.qq.com > 管理中心 > 网站应用 > 开发信息 > 授权回调域, or mp.weixin.qq.com > \
                                           设置与开发 > 账号设置 > 功能设置 > 网页授权域名";

/// Test accounts, which need no registration; this page did not move.
pub(super) const TEST_ACCOUNT: &str = "mp.weixin.qq.com/debug/cgi-bin/sandbox?t=sandbox/login";
