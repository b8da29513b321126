//! The shape of the configuration file: tables and keys, no meaning.
//!
//! Every key may be absent: defaults and demands are decided where the value is read. Plain values stay text until
//! then ([`Scalar`]), because the environment has nothing but text and a token of digits must keep its leading zeros.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

pub(super) use super::given::{Elsewhere, List, ListOrTable, OrTable, Scalar, SecretSource, SecretSources, Tables};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub(super) server: Server,
    pub(super) admin: Admin,
    pub(super) queue: Queue,
    pub(super) log: Log,
    pub(super) telemetry: Telemetry,
    pub(super) accounts: BTreeMap<String, Account>,
    pub(super) targets: BTreeMap<String, Target>,
}

/// `[server]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Server {
    pub(super) listen: Option<List>,
    pub(super) tls: Option<Tables<Tls>>,
    pub(super) trusted_proxies: Option<List>,
    pub(super) proxy_protocol: Option<Scalar>,
    pub(super) http2: Option<Scalar>,
    pub(super) drain: Option<Scalar>,
    pub(super) max_body: Option<Scalar>,
    pub(super) strict: Option<Scalar>,
}

/// `server.tls`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) cert: Option<Scalar>,
    pub(super) key: Option<Scalar>,
    pub(super) acme: Option<Acme>,
}

/// `server.tls.acme`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Acme {
    pub(super) domains: Option<List>,
    pub(super) email: Option<Scalar>,
    pub(super) directory: Option<Scalar>,
    pub(super) ca: Option<Scalar>,
}

/// `[admin]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) listen: Option<Scalar>,
    pub(super) token: Option<SecretSource>,
}

/// `[queue]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Queue {
    #[serde(rename = "type")]
    pub(super) engine: Option<Scalar>,
    pub(super) path: Option<Scalar>,
    pub(super) retention: Option<Scalar>,
    pub(super) max_size: Option<Scalar>,
    pub(super) encryption_keys: Option<SecretSources>,
}

/// `[log]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub(super) format: Option<Scalar>,
    pub(super) level: Option<Scalar>,
    pub(super) openid: Option<Scalar>,
}

/// `[telemetry]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Telemetry {
    pub(super) otlp: Option<SecretSource>,
    pub(super) headers: BTreeMap<String, SecretSource>,
    pub(super) service_name: Option<Scalar>,
}

/// `[accounts.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Account {
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
    pub(super) dedup_window: Option<Scalar>,
    pub(super) allow_from: Option<ListOrTable<AllowFrom>>,
    pub(super) routes: Vec<Route>,
}

/// `allow_from` of an account.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AllowFrom {
    pub(super) networks: Option<List>,
    pub(super) action: Option<Scalar>,
}

/// `[[accounts.NAME.routes]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Route {
    pub(super) r#match: Option<Match>,
    pub(super) otherwise: Option<Scalar>,
    pub(super) to: Option<List>,
    pub(super) reply: Option<Reply>,
}

/// `match` of a route.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Match {
    pub(super) msg_type: Option<List>,
    pub(super) event: Option<List>,
    pub(super) event_key: Option<List>,
    pub(super) scene: Option<List>,
    pub(super) content: Option<List>,
    pub(super) from: Option<List>,
}

/// `reply` of a route: one answerer, or several in the order of their right.
#[derive(Debug)]
pub(super) enum Reply {
    One(Answerer),
    List(Vec<Answerer>),
}

/// Who replies: the target of that name, or the configuration itself.
#[derive(Debug)]
pub(super) enum Answerer {
    Target(String),
    Fixed(Box<FixedReply>),
}

/// A fixed reply, one key of these.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FixedReply {
    pub(super) text: Option<Scalar>,
    pub(super) image: Option<OrTable<Media>>,
    pub(super) voice: Option<OrTable<Media>>,
    pub(super) video: Option<Video>,
    pub(super) music: Option<Music>,
    pub(super) news: Option<News>,
    pub(super) transfer_customer_service: Option<OrTable<Transfer>>,
}

/// The uploaded file of a fixed reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Media {
    pub(super) media_id: Option<Scalar>,
}

/// The video of a fixed reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Video {
    pub(super) media_id: Option<Scalar>,
    pub(super) title: Option<Scalar>,
    pub(super) description: Option<Scalar>,
}

/// The music of a fixed reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Music {
    pub(super) title: Option<Scalar>,
    pub(super) description: Option<Scalar>,
    pub(super) music_url: Option<Scalar>,
    pub(super) hq_music_url: Option<Scalar>,
    pub(super) thumb_media_id: Option<Scalar>,
}

/// The article of a fixed reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct News {
    pub(super) title: Option<Scalar>,
    pub(super) description: Option<Scalar>,
    pub(super) pic_url: Option<Scalar>,
    pub(super) url: Option<Scalar>,
}

/// Whom a fixed reply hands the user over to.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Transfer {
    pub(super) kf_account: Option<Scalar>,
}

/// `[targets.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Target {
    pub(super) role: Option<Scalar>,
    pub(super) url: Option<Scalar>,
    pub(super) provider: Option<Scalar>,
    pub(super) identifier: Option<Scalar>,
    pub(super) user_pool_id: Option<Scalar>,
    pub(super) base_url: Option<Scalar>,
    pub(super) domain: Option<Scalar>,
    pub(super) idp_id: Option<Scalar>,
    pub(super) format: Option<Scalar>,
    pub(super) secret: Option<SecretSources>,
    pub(super) app_id: Option<Scalar>,
    pub(super) token: Option<SecretSource>,
    pub(super) encoding_aes_key: Option<SecretSource>,
    pub(super) mode: Option<Scalar>,
    pub(super) timeout: Option<Scalar>,
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
}

// === impl Deserialize ===

impl<'de> Deserialize<'de> for Reply {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Reply;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(ANSWERER)?;
                f.write_str(", or a list of these")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Reply, E> {
                Ok(Reply::One(Answerer::Target(name.to_owned())))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Reply, A::Error> {
                let fixed = FixedReply::deserialize(MapAccessDeserializer::new(table))?;
                Ok(Reply::One(Answerer::Fixed(Box::new(fixed))))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Reply, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Reply::List(list))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

const ANSWERER: &str = "the name of a target or a fixed reply such as { text = \"Welcome!\" }";

impl<'de> Deserialize<'de> for Answerer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Answerer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(ANSWERER)
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Answerer, E> {
                Ok(Answerer::Target(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Answerer, A::Error> {
                FixedReply::deserialize(MapAccessDeserializer::new(table)).map(Box::new).map(Answerer::Fixed)
            }
        }
        deserializer.deserialize_any(Any)
    }
}
