//! The schema of the configuration file: tables and keys, without their meaning.
//!
//! Every key may be absent: defaults and requirements are applied where the value is read. Plain values stay text until
//! then ([`Scalar`]): the environment has only text, and a token of digits must keep its leading zeros.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

pub(super) use super::value_shapes::{
    List, ListOrTable, OrTable, Scalar, SecretLocation, SecretSource, SecretSources, Tables,
};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ConfigFile {
    pub(super) server: ServerSection,
    pub(super) admin: AdminSection,
    pub(super) queue: QueueSection,
    pub(super) log: LogSection,
    pub(super) telemetry: TelemetrySection,
    pub(super) accounts: BTreeMap<String, AccountSection>,
    pub(super) targets: BTreeMap<String, TargetSection>,
    pub(super) logins: BTreeMap<String, LoginSection>,
}

/// `[server]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ServerSection {
    pub(super) listen: Option<List>,
    pub(super) tls: Option<Tables<TlsSection>>,
    pub(super) trusted_proxies: Option<List>,
    pub(super) proxy_protocol: Option<Scalar>,
    pub(super) http2: Option<Scalar>,
    pub(super) drain: Option<Scalar>,
    pub(super) max_body: Option<Scalar>,
    pub(super) strict: Option<Scalar>,
    pub(super) verify_files: Option<List>,
}

/// `server.tls`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TlsSection {
    pub(super) cert: Option<Scalar>,
    pub(super) key: Option<Scalar>,
    pub(super) acme: Option<AcmeSection>,
}

/// `server.tls.acme`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AcmeSection {
    pub(super) domains: Option<List>,
    pub(super) email: Option<Scalar>,
    pub(super) directory: Option<Scalar>,
    pub(super) ca: Option<Scalar>,
}

/// `[admin]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AdminSection {
    pub(super) listen: Option<Scalar>,
    pub(super) token: Option<SecretSource>,
    pub(super) users: BTreeMap<String, UserSection>,
    pub(super) console: Option<Scalar>,
    pub(super) console_hosts: Option<List>,
}

/// `[admin.users.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct UserSection {
    pub(super) token: Option<SecretSource>,
    pub(super) role: Option<Scalar>,
}

/// `[queue]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct QueueSection {
    #[serde(rename = "type")]
    pub(super) engine: Option<Scalar>,
    pub(super) path: Option<Scalar>,
    pub(super) retention: Option<Scalar>,
    pub(super) max_size: Option<Scalar>,
    pub(super) max_memory: Option<Scalar>,
    pub(super) encryption_keys: Option<SecretSources>,
    pub(super) url: Option<SecretSource>,
    pub(super) password: Option<SecretSource>,
    pub(super) tls: Option<OrTable<QueueTlsSection>>,
    pub(super) schema: Option<Scalar>,
    pub(super) pooler: Option<Scalar>,
    pub(super) standby: Option<Scalar>,
    pub(super) accept_weak_durability: Option<Scalar>,
    pub(super) replica: Option<Scalar>,
    pub(super) spool: Option<Scalar>,
    pub(super) spool_size: Option<Scalar>,
}

/// `queue.tls`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct QueueTlsSection {
    pub(super) ca: Option<Scalar>,
    pub(super) client_cert: Option<Scalar>,
    pub(super) client_key: Option<Scalar>,
}

/// `[log]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LogSection {
    pub(super) format: Option<Scalar>,
    pub(super) level: Option<Scalar>,
    pub(super) openid: Option<Scalar>,
}

/// `[telemetry]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TelemetrySection {
    pub(super) otlp: Option<SecretSource>,
    pub(super) headers: BTreeMap<String, SecretSource>,
    pub(super) service_name: Option<Scalar>,
}

/// `[accounts.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AccountSection {
    pub(super) path: Option<Scalar>,
    pub(super) app_id: Option<Scalar>,
    pub(super) token: Option<SecretSource>,
    pub(super) encoding_aes_key: Option<SecretSource>,
    pub(super) mode: Option<Scalar>,
    pub(super) previous_token: Option<SecretSource>,
    pub(super) previous_encoding_aes_key: Option<SecretSource>,
    pub(super) max_skew: Option<Scalar>,
    pub(super) reply_budget: Option<Scalar>,
    pub(super) reply_window: Option<Scalar>,
    pub(super) reply_window_failures: Option<Scalar>,
    pub(super) held_replies: Option<Scalar>,
    pub(super) held_prompt: Option<FixedReplySection>,
    pub(super) held_none: Option<FixedReplySection>,
    pub(super) held_more: Option<Scalar>,
    pub(super) held_pickup: Option<List>,
    pub(super) long_text: Option<Scalar>,
    pub(super) dedup_window: Option<Scalar>,
    pub(super) allow_from: Option<ListOrTable<AllowFromSection>>,
    pub(super) routes: Vec<RouteSection>,
}

/// `[logins.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LoginSection {
    pub(super) path: Option<Scalar>,
    pub(super) to: Option<Scalar>,
    pub(super) pass: Option<List>,
    pub(super) home: Option<Scalar>,
}

/// `allow_from` of an account.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AllowFromSection {
    pub(super) networks: Option<List>,
    pub(super) action: Option<Scalar>,
}

/// `[[accounts.NAME.routes]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RouteSection {
    pub(super) r#match: Option<MatchSection>,
    pub(super) otherwise: Option<Scalar>,
    pub(super) to: Option<List>,
    pub(super) reply: Option<ReplySection>,
}

/// `match` of a route.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MatchSection {
    pub(super) msg_type: Option<List>,
    pub(super) event: Option<List>,
    pub(super) event_key: Option<List>,
    pub(super) scene: Option<List>,
    pub(super) content: Option<List>,
    pub(super) from: Option<List>,
}

/// `reply` of a route: one replier, or several by priority.
#[derive(Debug)]
pub(super) enum ReplySection {
    One(ReplierSection),
    List(Vec<ReplierSection>),
}

/// The source of a reply: the target of that name, or the configuration itself.
#[derive(Debug)]
pub(super) enum ReplierSection {
    Target(String),
    Fixed(Box<FixedReplySection>),
}

/// A fixed reply: exactly one of these keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FixedReplySection {
    pub(super) text: Option<Scalar>,
    pub(super) image: Option<OrTable<MediaSection>>,
    pub(super) voice: Option<OrTable<MediaSection>>,
    pub(super) video: Option<VideoSection>,
    pub(super) music: Option<MusicSection>,
    pub(super) news: Option<Tables<NewsSection>>,
    pub(super) transfer_customer_service: Option<OrTable<TransferSection>>,
}

/// The uploaded file of a fixed reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MediaSection {
    pub(super) media_id: Option<Scalar>,
}

/// The video of a fixed reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct VideoSection {
    pub(super) media_id: Option<Scalar>,
    pub(super) title: Option<Scalar>,
    pub(super) description: Option<Scalar>,
}

/// The music of a fixed reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MusicSection {
    pub(super) title: Option<Scalar>,
    pub(super) description: Option<Scalar>,
    pub(super) music_url: Option<Scalar>,
    pub(super) hq_music_url: Option<Scalar>,
    pub(super) thumb_media_id: Option<Scalar>,
}

/// An article of a fixed reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct NewsSection {
    pub(super) title: Option<Scalar>,
    pub(super) description: Option<Scalar>,
    pub(super) pic_url: Option<Scalar>,
    pub(super) url: Option<Scalar>,
}

/// The customer service account that a fixed reply transfers the user to.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TransferSection {
    pub(super) kf_account: Option<Scalar>,
}

/// `[targets.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TargetSection {
    pub(super) role: Option<Scalar>,
    pub(super) url: Option<Scalar>,
    pub(super) provider: Option<Scalar>,
    pub(super) identifier: Option<Scalar>,
    pub(super) user_pool_id: Option<SecretSource>,
    pub(super) base_url: Option<Scalar>,
    pub(super) domain: Option<Scalar>,
    pub(super) idp_id: Option<SecretSource>,
    pub(super) provider_id: Option<Scalar>,
    pub(super) format: Option<Scalar>,
    pub(super) secret: Option<SecretSources>,
    pub(super) app_id: Option<Scalar>,
    pub(super) token: Option<SecretSource>,
    pub(super) encoding_aes_key: Option<SecretSource>,
    pub(super) mode: Option<Scalar>,
    pub(super) timeout: Option<Scalar>,
    pub(super) tries: Option<Scalar>,
    pub(super) not_yet_after: Option<Scalar>,
    pub(super) concurrency: Option<Scalar>,
    pub(super) rate: Option<Scalar>,
    pub(super) order: Option<Scalar>,
    pub(super) retry: Option<List>,
    pub(super) expire_after: Option<Scalar>,
    pub(super) headers: BTreeMap<String, SecretSource>,
    pub(super) ca: Option<Scalar>,
    pub(super) client_cert: Option<Scalar>,
    pub(super) client_key: Option<Scalar>,
    pub(super) proxy: Option<Scalar>,
    pub(super) deny_private: Option<Scalar>,
    pub(super) delivered_if: Option<List>,
    pub(super) failed_if: Option<List>,
    pub(super) no_reply_if: Option<List>,
}

// === impl Deserialize ===

impl<'de> Deserialize<'de> for ReplySection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReplySectionVisitor;
        impl<'de> Visitor<'de> for ReplySectionVisitor {
            type Value = ReplySection;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(REPLIER)?;
                f.write_str(", or a list of these")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<ReplySection, E> {
                Ok(ReplySection::One(ReplierSection::Target(name.to_owned())))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<ReplySection, A::Error> {
                let fixed = FixedReplySection::deserialize(MapAccessDeserializer::new(table))?;
                Ok(ReplySection::One(ReplierSection::Fixed(Box::new(fixed))))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<ReplySection, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(ReplySection::List(list))
            }
        }
        deserializer.deserialize_any(ReplySectionVisitor)
    }
}

const REPLIER: &str = "the name of a target or a fixed reply such as { text = \"Welcome!\" }";

impl<'de> Deserialize<'de> for ReplierSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReplierSectionVisitor;
        impl<'de> Visitor<'de> for ReplierSectionVisitor {
            type Value = ReplierSection;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(REPLIER)
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<ReplierSection, E> {
                Ok(ReplierSection::Target(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<ReplierSection, A::Error> {
                FixedReplySection::deserialize(MapAccessDeserializer::new(table))
                    .map(Box::new)
                    .map(ReplierSection::Fixed)
            }
        }
        deserializer.deserialize_any(ReplierSectionVisitor)
    }
}
