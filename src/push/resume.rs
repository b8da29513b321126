//! After a crash: pushes that were stored and whose reply was still awaited are resumed before the relay listens.
//!
//! WeChat pushes them again within some seconds. Without this, that try would find the event stored without a reply
//! and be answered `success` at once, although the handler is asked again and replies in time. So each is led again by
//! a task of its own, which WeChat's next try joins as a follower, as it would join a first try that is in progress.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::account::ServedAccount;
use super::inflight::{Follower, Joined, Leader};
use super::reply::Replier;
use super::{Pipeline, REPLY_MARGIN, RelayOutcome};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::{self, Lease, Unanswered};
use crate::trace::Trace;

/// WeChat tries three times within 15 s: a later reply reaches nobody.
const TRIES: Duration = Duration::from_secs(15);

impl Pipeline {
    /// Resumes the pushes of the last seconds whose reply was awaited when an earlier process ended. Returns the leases
    /// of their deliveries, for the lanes. Where the store cannot be read, they are delivered all the same.
    pub async fn resume(self: &Arc<Self>, now: UnixMillis) -> Vec<Lease> {
        let mut resumed = Vec::new();
        if let Err(error) = self.resume_into(&mut resumed, now).await {
            tracing::warn!(%error, remedy = error.remedy(), "awaited replies not resumed");
        }
        if !resumed.is_empty() {
            tracing::info!(deliveries = resumed.len(), "awaited replies resumed");
        }
        resumed
    }

    async fn resume_into(self: &Arc<Self>, resumed: &mut Vec<Lease>, now: UnixMillis) -> Result<(), queue::Error> {
        let since = now.before(TRIES);
        for Unanswered { event, key, reply } in self.queue.unanswered(since).await? {
            let accounts = self.accounts.load();
            let Some(served) = accounts.named(&event.account) else { continue };
            // WeChat may have been answered with the prompt, and may not come again: the reply is held, and a try that
            // comes all the same finds it there.
            if served.account.held.is_some() {
                continue;
            }
            // At most `TRIES`: the event may have been received by a clock that was ahead.
            let remaining = TRIES.saturating_sub(now.since(event.received_at)).saturating_sub(REPLY_MARGIN);
            let deadline = Instant::now() + remaining;
            let plan = served.account.routes.plan(&event.message);
            let (replier, awaited) = Replier::new(plan.reply, &event, deadline);
            // With a reply of a target it was answered; a fixed one is stored with every event.
            if awaited.is_empty() || reply != replier.fixed() {
                continue;
            }
            let leases = self.queue.lease_awaited(event.clone(), awaited).await?;
            if leases.is_empty() {
                continue;
            }
            let window_ends = served.budget.window().map(|_| deadline + REPLY_MARGIN);
            if let Joined::Leader(leader, push) = self.inflight.resume(key, Trace::of(&event), window_ends) {
                resumed.extend(leases);
                let relay = self.clone().relay_again(served.clone(), event.id, replier, leader, push, deadline);
                self.tasks.spawn(relay);
            }
        }
        Ok(())
    }

    /// Waits for the reply of a push that is stored, for WeChat's next try; once the relay stops, for no longer than a
    /// try would wait.
    async fn relay_again(
        self: Arc<Self>,
        served: Arc<ServedAccount>,
        event: EventId,
        replier: Replier,
        leader: Leader,
        push: Follower,
        deadline: Instant,
    ) {
        leader.share_tries(replier.tries());
        leader.await_reply();
        let mut reply = pin!(self.reply(replier, None, event, &served, &push, deadline));
        let stopped = async {
            self.stop.cancelled().await;
            tokio::time::sleep(served.account.reply_budget).await;
        };
        let reply = tokio::select! {
            reply = &mut reply => reply,
            () = stopped => {
                push.answer_now.cancel();
                reply.await
            }
        };
        leader.finish(reply.ok().map(|reply| RelayOutcome { event, result: "duplicate", reply }));
    }
}
