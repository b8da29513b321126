//! The traffic: a push as the push pipeline makes it, and targets with random settings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Uri};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::model::{Model, PushContent, TargetSpec};
use super::world::{SimulationRng, TargetBehavior, World};
use crate::backoff::Schedule;
use crate::clock::UnixMillis;
use crate::deliver::scripted::Script;
use crate::deliver::{AnswerRules, CredentialsOverride, Format, Role, Target, TlsOptions, Tries, Upstream};
use crate::dispatcher::{Policy, TargetSettings};
use crate::event::{ContentKey, Event, EventId};
use crate::queue::{AwaitedReply, DeliveryOrder, Enqueued, Error, NewEvent, Queue, ReplyOffer};
use crate::telemetry::OpenIds;
use crate::wechat::{Message, Mode};

/// How long WeChat waits for a reply.
pub(super) const WINDOW: Duration = Duration::from_secs(4);

/// One push, as the push pipeline makes it.
pub(super) struct PlannedPush {
    pub(super) world: Arc<World>,
    pub(super) queue: Queue,
    pub(super) content: usize,
    /// The targets that keep order, and when that was so.
    pub(super) ordered: (u64, Vec<Arc<str>>),
    /// Whether its first target is asked for a reply.
    pub(super) waits: bool,
    /// Whether it is answered with a reply.
    pub(super) replies: bool,
}

/// A push that the queue has answered.
pub(super) struct QueuedPush {
    pub(super) id: EventId,
    pub(super) result: Result<Enqueued, Error>,
    pub(super) asked: oneshot::Receiver<ReplyOffer>,
}

impl PlannedPush {
    /// Hands it to the queue; `None` where the process has ended meanwhile.
    pub(super) async fn enqueue(&self) -> Option<QueuedPush> {
        let Self { world, queue, content, ordered, waits, .. } = self;
        let now = UnixMillis::now();
        let id = queue.next_id(now);
        let (user, targets) = {
            let mut state = world.state();
            let PushContent { user, targets, .. } = &state.model.contents[*content];
            let known = (*user, targets.clone());
            state.model.asked(id, *content, now, ordered.clone());
            state.note(format!("push {id} of content {content}, user {}", known.0));
            known
        };
        let (sender, asked) = oneshot::channel();
        let until = now.after(WINDOW);
        let reply = AwaitedReply { until, first: true, tries: Arc::default(), sender };
        let awaited = waits.then(|| (Arc::clone(&targets[0]), reply));
        let awaited = awaited.into_iter().collect();
        let new = NewEvent { targets, awaited, ..new_event(id, now, &Model::text(*content, user)) };
        let result = queue.enqueue(new).await;
        let mut state = world.state();
        if state.dead {
            return None;
        }
        state.note(format!("push {id}: {result:?}"));
        let reader = state.reader.take()?;
        let wrong = state.model.answered(&reader, id, &result);
        state.reader = Some(reader);
        if let Some(wrong) = wrong {
            state.report_violation(format!("push {id}: {wrong}"));
        }
        drop(state);
        Some(QueuedPush { id, result, asked })
    }

    /// Makes it, and stores the reply.
    pub(super) async fn run(self) {
        let Some(QueuedPush { id, result: Ok(Enqueued::Fresh), asked }) = self.enqueue().await else { return };
        if self.waits {
            drop(timeout(WINDOW, asked).await);
        }
        let text = format!("reply to {id}");
        if self.replies && self.queue.record_reply(id, text.clone(), None).await.is_ok() {
            let mut state = self.world.state();
            let since = state.model.tick();
            let content = &mut state.model.contents[self.content];
            if content.stored == Some(id) {
                content.reply = Some((since, text));
            }
        }
    }
}

pub(super) fn new_event(id: EventId, received_at: UnixMillis, text: &str) -> NewEvent {
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

/// How a target answers from now on.
pub(super) fn behavior(rng: &mut SimulationRng) -> TargetBehavior {
    match rng.below(10) {
        0..4 => TargetBehavior::Up,
        4 => TargetBehavior::Slow,
        5 => TargetBehavior::Flaky(20 + rng.below(70)),
        6 | 7 => TargetBehavior::Down,
        8 => TargetBehavior::Silent,
        _ if rng.chance(50) => TargetBehavior::Busy(1 + rng.below(90)),
        _ => TargetBehavior::Gone(30),
    }
}

/// The target, as its lane serves it.
pub(super) fn policy(script: Script, spec: &TargetSpec) -> Policy {
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
        tries: Tries::Once,
        bare_scene: false,
        answers: AnswerRules::default(),
    };
    let upstream = Upstream::scripted(target.clone(), script).unwrap();
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
