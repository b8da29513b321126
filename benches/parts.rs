//! The cost of each step of a push alone, by divan.
//!
//! `cargo bench --bench parts [-- open]`
//!
//! The parts that need no disk are functions of [`part`], never inlined, whose names `tests/perf/instructions.py`
//! counts the instructions by. The push is a scan in secure mode, as a sender makes it. `enqueue` is durable, so it is
//! mostly the flush time of the disk of `TMPDIR`: 64 concurrent ones share their flushes.

#![expect(clippy::expect_used, reason = "in a benchmark a failed expectation is the failure")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use wxrelay::clock::UnixMillis;
use wxrelay::event::{ContentKey, Event};
use wxrelay::queue::{EncryptionKeys, Engine, Enqueued, NewEvent, Queue, Settings};
use wxrelay::route::{Match, Pattern, Patterns, Route, Table, When};
use wxrelay::secret::Secret;
use wxrelay::wechat::{AesKey, Credentials, Message, Mode, Query, Salt};

const APP_ID: &str = "wxb11529c136998cb6";
const TOKEN: &str = "pamtest";
const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
const OPENID: &str = "oTALK2TjuEGTNoeX76QEjQNrcURx";
const SECONDS: i64 = 1_795_161_600;

fn main() {
    divan::main();
}

/// The parts. Each drops its result, so that all of it is counted.
mod part {
    use std::hint::black_box;

    use bytes::Bytes;
    use wxrelay::event::ContentKey;
    use wxrelay::route::Table;
    use wxrelay::wechat::envelope::Ciphertext;
    use wxrelay::wechat::signature;
    use wxrelay::wechat::{AesKey, Credentials, Message, Query, ReplySealing, Salt, Syntax};

    /// The signature over the encrypted text.
    #[inline(never)]
    pub(super) fn verify(parts: [&str; 4], given: &str) -> bool {
        signature::verify(parts, given)
    }

    /// From base64 to the clear text.
    #[inline(never)]
    pub(super) fn unseal(key: &AesKey, app_id: &str, encrypt: &str) -> bool {
        Ciphertext::decode(encrypt).is_ok_and(|sealed| black_box(key.open(sealed, app_id)).is_ok())
    }

    /// From the clear text to a tree.
    #[inline(never)]
    pub(super) fn parse(clear: &[u8]) -> bool {
        black_box(Message::parse(clear)).is_ok()
    }

    /// All of these, starting with query and body.
    #[inline(never)]
    pub(super) fn open(credentials: &Credentials, query: &str, body: &Bytes) -> bool {
        Query::parse(query).is_ok_and(|query| black_box(credentials.open(&query, body)).is_ok())
    }

    /// The same for a push with a wrong signature: what an unauthenticated client can make the relay do.
    #[inline(never)]
    pub(super) fn refuse(credentials: &Credentials, query: &str, body: &Bytes) -> bool {
        Query::parse(query).is_ok_and(|query| black_box(credentials.open(&query, body)).is_err())
    }

    /// The key that recognises duplicates of the push.
    #[inline(never)]
    pub(super) fn key(message: &Message, clear: &[u8]) -> ContentKey {
        ContentKey::of(super::APP_ID, message, clear)
    }

    /// Which targets it goes to.
    #[inline(never)]
    pub(super) fn plan(table: &Table, message: &Message) -> usize {
        black_box(table.plan(message)).targets.len()
    }

    /// The reply, encrypted and signed.
    #[inline(never)]
    pub(super) fn seal(credentials: &Credentials, reply: &str, salt: &Salt) -> usize {
        black_box(credentials.seal_reply(reply, ReplySealing::current(Syntax::Xml), salt)).len()
    }
}

#[divan::bench]
fn verify(bencher: Bencher<'_, '_>) {
    let push = Push::made();
    let query = Query::parse(&push.query).expect("a sound query");
    let outer = Message::parse(&push.body).expect("a sound body");
    let present = "a sealed push has it";
    let (timestamp, nonce) = (query.timestamp.as_deref().expect(present), query.nonce.as_deref().expect(present));
    let parts = [TOKEN, timestamp, nonce, outer.root.text_of("Encrypt").expect(present)];
    let given = query.msg_signature.as_deref().expect(present);
    assert!(part::verify(parts, given));
    bencher.bench_local(|| part::verify(black_box(parts), black_box(given)));
}

#[divan::bench]
fn unseal(bencher: Bencher<'_, '_>) {
    let (push, key) = (Push::made(), AesKey::parse(KEY).expect("a key"));
    let outer = Message::parse(&push.body).expect("a sound body");
    let encrypt = outer.root.text_of("Encrypt").expect("a sealed push has it");
    assert!(part::unseal(&key, APP_ID, encrypt));
    bencher.bench_local(|| part::unseal(black_box(&key), black_box(APP_ID), black_box(encrypt)));
}

#[divan::bench]
fn parse(bencher: Bencher<'_, '_>) {
    let clear = clear_text();
    assert!(part::parse(clear.as_bytes()));
    bencher.bench_local(|| part::parse(black_box(clear.as_bytes())));
}

#[divan::bench]
fn open(bencher: Bencher<'_, '_>) {
    let (push, credentials) = (Push::made(), credentials(TOKEN));
    assert!(part::open(&credentials, &push.query, &push.body));
    bencher.bench_local(|| part::open(black_box(&credentials), black_box(&push.query), black_box(&push.body)));
}

#[divan::bench]
fn refuse(bencher: Bencher<'_, '_>) {
    let (push, credentials) = (Push::made(), credentials("another"));
    assert!(part::refuse(&credentials, &push.query, &push.body));
    bencher.bench_local(|| part::refuse(black_box(&credentials), black_box(&push.query), black_box(&push.body)));
}

#[divan::bench]
fn key(bencher: Bencher<'_, '_>) {
    let clear = clear_text();
    let message = Message::parse(clear.as_bytes()).expect("a sound text");
    bencher.bench_local(|| part::key(black_box(&message), black_box(clear.as_bytes())));
}

#[divan::bench(args = [1, 100, 1000])]
fn plan(bencher: Bencher<'_, '_>, routes: usize) {
    let table = table(routes);
    let message = Message::parse(clear_text().as_bytes()).expect("a sound text");
    assert_eq!(part::plan(&table, &message), 1);
    bencher.bench_local(|| part::plan(black_box(&table), black_box(&message)));
}

#[divan::bench]
fn seal(bencher: Bencher<'_, '_>) {
    let (credentials, salt) = (credentials(TOKEN), Salt::new(SECONDS, [7; 24]));
    let reply = format!(
        "<xml><ToUserName><![CDATA[{OPENID}]]></ToUserName>\n<FromUserName><![CDATA[gh_0a1b2c3d4e5f]]></FromUserName>\n\
         <CreateTime>{SECONDS}</CreateTime>\n<MsgType><![CDATA[text]]></MsgType>\n\
         <Content><![CDATA[Welcome back 你好: you are signed in now.]]></Content>\n</xml>"
    );
    bencher.bench_local(|| part::seal(black_box(&credentials), black_box(&reply), black_box(&salt)));
}

#[divan::bench(args = [1, 64])]
fn enqueue(bencher: Bencher<'_, '_>, concurrency: usize) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = Runtime::new().expect("a runtime");
    let settings = Settings {
        engine: Engine::Embedded { path: folder.path().join("queue") },
        retention: Duration::from_hours(24),
        dedup_window: Duration::from_mins(2),
        replay_window: Duration::from_mins(20),
        max_size: 1 << 32,
        max_memory: 64 << 20,
        encryption_keys: EncryptionKeys::default(),
    };
    let queue = runtime.block_on(Queue::open(&settings, drop)).expect("a store");
    let push = Push::made();
    let mut made = 0_u64;
    bencher
        .counter(ItemsCount::new(concurrency))
        .with_inputs(|| {
            let numbers = made..made + concurrency as u64;
            made = numbers.end;
            numbers.map(|number| fresh(&queue, &push, number)).collect::<Vec<_>>()
        })
        .bench_local_values(|events| {
            runtime.block_on(async {
                let mut stored = JoinSet::new();
                for event in events {
                    let queue = queue.clone();
                    stored.spawn(async move { queue.enqueue(event).await });
                }
                for answer in stored.join_all().await {
                    assert!(matches!(answer, Ok(Enqueued::Fresh)));
                }
            });
        });
    runtime.block_on(queue.close());
}

/// A push as it comes in: query and body.
struct Push {
    query: String,
    body: Bytes,
}

impl Push {
    fn made() -> Self {
        let push = credentials(TOKEN).push(&clear_text(), OPENID, &Salt::new(SECONDS, [7; 24]));
        Self { query: push.query, body: push.body.into() }
    }
}

fn credentials(token: &str) -> Credentials {
    Credentials {
        app_id: APP_ID.into(),
        token: Secret::new(token),
        previous_token: None,
        aes_key: Some(AesKey::parse(KEY).expect("a key")),
        previous_aes_key: None,
        mode: Mode::Secure,
    }
}

fn clear_text() -> String {
    format!(
        "<xml><ToUserName><![CDATA[gh_0a1b2c3d4e5f]]></ToUserName>\n<FromUserName><![CDATA[{OPENID}]]></FromUserName>\n\
         <CreateTime>{SECONDS}</CreateTime>\n<MsgType><![CDATA[event]]></MsgType>\n<Event><![CDATA[SCAN]]></Event>\n\
         <EventKey><![CDATA[login_1792106704]]></EventKey>\n\
         <Ticket><![CDATA[gQGh8TwAAAAAAAAAAS5odHRwOi8vd2VpeGluLnFxLmNvbS9xLzAyQ1ZpcjFfRGpmRzExDMAwMHcwN1oAAgQ]]></Ticket>\n\
         </xml>"
    )
}

/// Routes as operators write them: by an event, a scene, a prefix of a scene. The last one matches the push, which is
/// compared with each of them.
fn table(routes: usize) -> Table {
    let patterns = |text: &str, case_blind| Some(Patterns(vec![Pattern::parse(text, case_blind).expect("a pattern")]));
    let event = |name| Match { event: patterns(name, true), ..Match::default() };
    let mut routes: Vec<_> = (1..routes)
        .map(|number| match number % 3 {
            0 => event("CLICK"),
            1 => Match { scene: patterns(&format!("shop_{number}"), false), ..event("SCAN") },
            _ => Match { scene: patterns(&format!("shop_{number}_*"), false), ..event("SCAN") },
        })
        .collect();
    routes.push(Match { scene: patterns("login_*", false), ..event("SCAN") });
    let route =
        |(number, when)| Route { when: When::Match(when), to: vec![format!("app{number}").into()], reply: None };
    Table::new(routes.into_iter().enumerate().map(route).collect())
}

/// The push as a new event for one target.
fn fresh(queue: &Queue, push: &Push, number: u64) -> NewEvent {
    let (clear, now) = (clear_text(), UnixMillis::now());
    let event = Event {
        id: queue.next_id(now),
        account: "shop".into(),
        app_id: APP_ID.into(),
        mode: Mode::Secure,
        received_at: now,
        query: push.query.clone(),
        body: push.body.clone(),
        message: Message::parse(clear.as_bytes()).expect("a sound text"),
        clear: clear.into(),
        traceparent: None,
    };
    // Keys come nearly in order: they begin with the time in seconds.
    let mut key = [0; 24];
    key[..8].copy_from_slice(&number.to_be_bytes());
    let targets = vec!["app".into()];
    NewEvent { event: Arc::new(event), key: ContentKey(key), targets, reply: None, awaited: Vec::new() }
}
