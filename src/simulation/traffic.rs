//! The traffic: a push as the push pipeline makes it, and targets with random settings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Uri};
use tokio::sync::oneshot;

use super::model::{Model, PushContent, TargetSpec};
use super::world::{SimulationRng, World};
use crate::backoff::Schedule;
use crate::clock::UnixMillis;
use crate::deliver::{CredentialsOverride, Format, ProviderRules, Role, Target, TlsOptions, Upstream};
use crate::dispatcher::{Policy, TargetSettings};
use crate::event::{ContentKey, Event, EventId};
use crate::queue::{AwaitedReply, DeliveryOrder, Enqueued, NewEvent, Queue};
use crate::telemetry::OpenIds;
use crate::wechat::{Message, Mode};

/// One push, as the push pipeline makes it.
pub(super) async fn push(
    world: Arc<World>,
    queue: Queue,
    content: usize,
    ordered: (u64, Vec<Arc<str>>),
    waits: bool,
    replies: bool,
) {
    let now = UnixMillis::now();
    let id = queue.next_id(now);
    let (user, targets) = {
        let mut state = world.state();
        let PushContent { user, targets, .. } = &state.model.contents[content];
        let known = (*user, targets.clone());
        state.model.asked(id, content, now, ordered);
        state.note(format!("push {id} of content {content}, user {}", known.0));
        known
    };
    let (sender, reply) = oneshot::channel();
    let awaited = waits.then(|| {
        (Arc::clone(&targets[0]), AwaitedReply { until: now.after(Duration::from_secs(4)), first: true, sender })
    });
    let awaited = awaited.into_iter().collect();
    let new = NewEvent { targets, awaited, ..new_event(id, now, &Model::text(content, user)) };
    let result = queue.enqueue(new).await;
    let fresh = {
        let mut state = world.state();
        if state.dead {
            return;
        }
        state.note(format!("push {id}: {result:?}"));
        let Some(reader) = state.reader.take() else { return };
        let wrong = state.model.answered(&reader, id, &result);
        state.reader = Some(reader);
        if let Some(wrong) = wrong {
            state.report_violation(format!("push {id}: {wrong}"));
        }
        matches!(result, Ok(Enqueued::Fresh))
    };
    if fresh && waits {
        drop(tokio::time::timeout(Duration::from_secs(4), reply).await);
    }
    let text = format!("reply to {id}");
    if fresh && replies && queue.record_reply(id, text.clone()).await.is_ok() {
        let mut state = world.state();
        let since = state.model.tick();
        let content = &mut state.model.contents[content];
        if content.stored == Some(id) {
            content.reply = Some((since, text));
        }
    }
}

fn new_event(id: EventId, received_at: UnixMillis, text: &str) -> NewEvent {
    let clear = Bytes::from(text.to_owned());
    let message = Message::parse(&clear).unwrap();
    let key = ContentKey::of("wx1", &message, &clear);
    let event = Event {
        id,
        account: "shop".into(),
        app_id: "wx1".into(),
        mode: Mode::Secure,
        received_at,
        query: String::new(),
        body: Bytes::from_static(b"sealed"),
        clear,
        message,
        traceparent: None,
    };
    NewEvent { event: Arc::new(event), key, targets: Vec::new(), reply: None, awaited: Vec::new() }
}

/// Random settings for the target.
pub(super) fn spec(rng: &mut SimulationRng, name: Arc<str>) -> TargetSpec {
    let role = if &*name == "idp" { Role::Identity } else { Role::Handler };
    let waits = (0..1 + rng.below(5)).map(|_| rng.pick(&[200, 1000, 5000, 20_000])).map(Duration::from_millis);
    let waits = waits.collect();
    let identity = role == Role::Identity;
    let expires = identity || rng.chance(15);
    TargetSpec {
        name,
        role,
        retry: if identity { Schedule::repeating(waits) } else { Schedule::ending(waits) },
        expire_after: expires.then(|| rng.millis(5_000, 200_000)),
        concurrency: usize::try_from(1 + rng.below(4)).unwrap(),
        timeout: rng.millis(500, 8000),
        order: if rng.chance(40) { DeliveryOrder::PerUser } else { DeliveryOrder::None },
    }
}

/// The target, as its lane serves it.
pub(super) fn policy(world: &Arc<World>, spec: &TargetSpec) -> Policy {
    let target = Target {
        name: Arc::clone(&spec.name),
        role: spec.role,
        url: Uri::from_static("http://target.example/"),
        format: Format::Raw,
        timeout: spec.timeout,
        headers: HeaderMap::new(),
        signing_keys: Vec::new(),
        credentials: CredentialsOverride::default(),
        tls: TlsOptions::default(),
        proxy: None,
        deny_private: false,
        provider: ProviderRules::default(),
    };
    let upstream = Upstream::scripted(target.clone(), world.script(&Arc::new(spec.clone()))).unwrap();
    let settings = TargetSettings {
        target,
        retry: spec.retry.clone(),
        expire_after: spec.expire_after,
        concurrency: spec.concurrency,
        rate: None,
        order: spec.order,
    };
    Policy::new(&settings, upstream, OpenIds::Hash)
}
