//! Replies that come after their push was answered: the prompt, and the message of the user that picks one up.
//!
//! A push that ends without the reply that its targets may still give is answered with the account's prompt. The reply
//! is held by the store (`queue/held.rs`) until a text message of the user matches `held_pickup`. Such a message is
//! stored like any other; but where something is held or still asked for, the targets that its route would ask for a
//! reply do not get it. WeChat's retry of it gets the same reply, which is stored with it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::account::{HeldReplies, ServedAccount};
use super::inflight::Follower;
use super::reply::render_fixed;
use super::{Pipeline, PushError, REPLY_MARGIN};
use crate::clock::UnixMillis;
use crate::event::{Event, EventId};
use crate::queue::{Error, HeldQuery, HeldReply, HeldState, LateReply, TakeReply};
use crate::route::ReplyRule;
use crate::wechat::{NextReply, ReplyBody, ReplyContent};

/// How often the store is asked whether a reply has come.
const EVERY: Duration = Duration::from_millis(100);
/// The least time for which a reply that may still come can be asked for.
const MIN_WAIT: Duration = Duration::from_secs(60);
/// How often replies expire.
const EXPIRE_EVERY: Duration = Duration::from_secs(10);

/// A push of an account that keeps replies.
pub(super) struct LatePush {
    served: Arc<ServedAccount>,
    event: Arc<Event>,
    /// The targets that its route asks for a reply.
    asked: Vec<Arc<str>>,
}

impl LatePush {
    /// `None` for an account that keeps none.
    pub(super) fn new(served: &Arc<ServedAccount>, event: &Arc<Event>, rule: Option<&ReplyRule>) -> Option<Self> {
        served.account.held.as_ref()?;
        let asked = rule.map(|rule| rule.asked.clone()).unwrap_or_default();
        Some(Self { served: Arc::clone(served), event: Arc::clone(event), asked })
    }

    /// Whether the route asks that target.
    pub(super) fn asks(&self, target: &str) -> bool {
        self.asked.iter().any(|asked| **asked == *target)
    }

    fn settings(&self) -> Option<&HeldReplies> {
        self.served.account.held.as_ref()
    }

    fn asks_for_reply(&self) -> bool {
        let message = &self.event.message;
        let is_text = message.msg_type().eq_ignore_ascii_case("text");
        is_text && self.settings().is_some_and(|held| held.pickup.match_text(message.content()))
    }

    fn query(&self) -> HeldQuery {
        let user = self.event.message.from_user().to_owned();
        HeldQuery { account: Arc::clone(&self.event.account), user, event: None, now: UnixMillis::now() }
    }

    fn render(&self, body: Option<&ReplyBody>) -> Option<Arc<str>> {
        body.map(|body| render_fixed(body, &self.event).clear.into())
    }

    fn prompt(&self) -> Option<Arc<str>> {
        self.render(self.settings()?.prompt.as_ref())
    }
}

impl Pipeline {
    /// Whether the push is a message that picks a reply up: it asks for one, and there is something to say.
    ///
    /// # Errors
    /// Where that is unknown: WeChat tries again.
    pub(super) async fn is_pick_up(&self, push: &LatePush) -> Result<bool, PushError> {
        if !push.asks_for_reply() {
            return Ok(false);
        }
        match self.queue.held(push.query()).await {
            Ok(HeldState::Held(_) | HeldState::Running) => Ok(true),
            Ok(HeldState::Ended(_)) => Ok(push.settings().is_some_and(|held| held.none.is_some())),
            Ok(HeldState::Nothing) => Ok(false),
            Err(error) => {
                self.warn_unread(push, &error);
                // While PostgreSQL is away, pushes are spooled all the same.
                if error.is_away() { Ok(false) } else { Err(PushError::Unavailable) }
            }
        }
    }

    /// The reply to a message that picks one up and is stored with that id: what is held, or what comes in time.
    ///
    /// # Errors
    /// Where it is unknown whether a reply was taken: WeChat tries again, and gets it.
    pub(super) async fn pick_up(
        &self,
        push: &LatePush,
        by: EventId,
        try_of: &Follower,
        deadline: Instant,
    ) -> Result<Option<Arc<str>>, PushError> {
        let until = deadline - REPLY_MARGIN;
        loop {
            match self.queue.held(push.query()).await {
                Ok(HeldState::Held(held)) => {
                    if let Some(reply) = self.take(push, held, by).await? {
                        return Ok(Some(reply));
                    }
                    // WeChat's other try of this message may have got it, by way of another replica.
                    let stored = self.queue.reply_of(by, UnixMillis::now().after(EVERY)).await;
                    if let Ok(Some(reply)) = stored {
                        return Ok(Some(reply.into()));
                    }
                    if Instant::now() >= until {
                        return Ok(push.prompt());
                    }
                }
                Ok(HeldState::Running) => {
                    if Instant::now() + EVERY >= until || try_of.answer_now.is_cancelled() {
                        return Ok(push.prompt());
                    }
                    sleep(EVERY).await;
                }
                Ok(HeldState::Ended(event)) => return Ok(self.say_none(push, event, by).await),
                Ok(HeldState::Nothing) => return Ok(None),
                Err(error) => {
                    self.warn_unread(push, &error);
                    return Ok(push.prompt());
                }
            }
        }
    }

    /// The answer to a push whose targets have given no reply, and may still give one: the reply, if it has come by
    /// `deadline`, else the route's fixed one or the prompt. Where none will come, the fixed one or `None`.
    ///
    /// # Errors
    /// Where it is unknown whether a reply was taken: WeChat tries again, and gets it.
    pub(super) async fn late_reply(
        &self,
        push: &LatePush,
        event: EventId,
        deadline: Instant,
        fixed: Option<Arc<str>>,
    ) -> Result<Option<Arc<str>>, PushError> {
        let keep = push.settings().map(|held| held.keep).unwrap_or_default();
        loop {
            let query = push.query();
            let late = LateReply {
                event,
                targets: push.asked.clone(),
                account: query.account,
                user: query.user,
                until: query.now.after(keep.max(MIN_WAIT)),
                now: query.now,
            };
            // Before the prompt: else nothing would know after a crash that it was given.
            match self.queue.await_late(late).await {
                Ok(HeldState::Held(held)) => {
                    return Ok(self.take(push, held, event).await?.or(fixed));
                }
                Ok(HeldState::Running) if Instant::now() + EVERY < deadline => sleep(EVERY).await,
                Ok(HeldState::Running) => return Ok(fixed.or_else(|| push.prompt())),
                Ok(HeldState::Ended(_) | HeldState::Nothing) => return Ok(fixed),
                Err(error) => {
                    self.warn_unread(push, &error);
                    let prompted = fixed.or_else(|| push.prompt());
                    return if error.is_away() { Ok(prompted) } else { Err(PushError::Unavailable) };
                }
            }
        }
    }

    /// The answer to WeChat's retry of a push that was stored without a reply.
    pub(super) async fn answer_again(
        &self,
        push: &LatePush,
        event: EventId,
        try_of: &Follower,
        deadline: Instant,
    ) -> Result<Option<Arc<str>>, PushError> {
        let own = self.late_reply(push, event, deadline - REPLY_MARGIN, None).await?;
        if own.is_some() || !push.asks_for_reply() {
            return Ok(own);
        }
        self.pick_up(push, event, try_of, deadline).await
    }

    /// Gives the next piece of a held reply to the push with that id. `None` where another one has got it.
    async fn take(&self, push: &LatePush, held: HeldReply, by: EventId) -> Result<Option<Arc<str>>, PushError> {
        let account = &push.served.account;
        let Some(keep) = push.settings().map(|held| held.keep) else { return Ok(None) };
        let Some(content) = ReplyContent::decode(&held.content) else { return Ok(None) };
        let (message, now) = (&push.event.message, UnixMillis::now());
        let NextReply { clear, end, is_cut } = content.next(&account.long_text, held.taken, message, now.seconds());
        let is_own = held.event == by;
        let reply: Arc<str> = clear.as_str().into();
        let take = TakeReply { held, until: end, by, reply: clear, expires_at: now.after(keep) };
        match self.queue.take(take).await {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => {
                self.warn_unread(push, &error);
                return Err(PushError::Unavailable);
            }
        }
        let metrics = &push.served.metrics;
        metrics.reply(if is_own { "rescued" } else { "picked_up" });
        if is_cut {
            metrics.reply("cut");
        } else if end.is_some() {
            metrics.reply("split");
        }
        Ok(Some(reply))
    }

    /// Says once that no reply will come.
    async fn say_none(&self, push: &LatePush, ended: EventId, by: EventId) -> Option<Arc<str>> {
        let reply = push.render(push.settings()?.none.as_ref())?;
        // For WeChat's retry. Without it the user is told all the same.
        let stored = self.queue.record_reply(by, reply.to_string(), None).await;
        let told = self.queue.forget_ended(ended).await;
        if let Err(error) = stored.map(drop).and(told) {
            self.warn_unread(push, &error);
        }
        Some(reply)
    }

    fn warn_unread(&self, push: &LatePush, error: &Error) {
        if let Some(suppressed) = push.served.failures.held_unread.allow() {
            let (account, remedy) = (&push.served.account.name, error.remedy());
            tracing::warn!(%account, %error, remedy, held_back = suppressed, "held replies not read");
        }
    }

    /// Ends replies that nobody asked for in time, while the relay runs.
    pub async fn expire_held(&self) {
        let mut passes = 0_u32;
        loop {
            sleep(EXPIRE_EVERY).await;
            let is_used = self.accounts.load().keep_replies();
            passes = passes.wrapping_add(1);
            // What was held before `held_replies` was switched off ends too, some minutes later.
            if !is_used && passes % 30 != 1 {
                continue;
            }
            match self.queue.expire_held(UnixMillis::now()).await {
                Ok(expired) => expired.iter().for_each(|(account, count)| {
                    (0..*count).for_each(|_| self.metrics.count_reply(account, "held_expired"));
                }),
                Err(error) => tracing::warn!(%error, remedy = error.remedy(), "held replies not expired"),
            }
        }
    }
}
