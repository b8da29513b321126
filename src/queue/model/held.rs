//! Replies that wait for the user's next message, as the model engine keeps them: by the rules of `queue/held.rs`, in the
//! plainest way.

use std::sync::Arc;

use super::store::StoreRows;
use super::{LEASE_TRY, ModelEngine};
use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::held::{
    GivenReply, HeldQuery, HeldReply, HeldState, LateReply, ReplyState, ReplyUse, TakeReply, state_of,
};
use crate::queue::{DeliveryState, Error};

/// What became of a reply.
#[derive(Debug)]
pub(crate) struct HeldRow {
    pub(crate) event: EventId,
    pub(crate) no: i64,
    pub(crate) target: Arc<str>,
    pub(crate) state: ReplyState,
    attempt: Option<(u32, UnixMillis)>,
    taken: usize,
    expires_at: Option<UnixMillis>,
    account: Arc<str>,
    user: String,
    content: String,
}

impl StoreRows {
    fn next_no(&self, event: EventId) -> i64 {
        self.held.iter().filter(|row| row.event == event).map(|row| row.no).max().unwrap_or(0) + 1
    }

    fn is_awaited_from(&self, event: EventId, target: &Arc<str>) -> bool {
        let row = self.deliveries.get(&(event, Arc::clone(target)));
        row.is_some_and(|row| row.state == DeliveryState::Pending)
    }

    pub(super) fn find_held(&self, query: &HeldQuery) -> HeldState {
        let HeldQuery { account, user, event, now } = query;
        let is_theirs = |row: &&HeldRow| row.account == *account && row.user == *user;
        let open = self.held.iter().filter(is_theirs).filter(|row| row.expires_at.is_some_and(|at| at > *now));
        let mut open: Vec<_> = open.filter(|row| event.is_none_or(|event| row.event == event)).collect();
        open.sort_by_key(|row| (row.taken == 0, row.event, row.no));
        let mut rest = HeldState::Nothing;
        for row in open {
            match row.state {
                ReplyState::Held => {
                    let HeldRow { event, no, content, taken, .. } = row;
                    return HeldState::Held(HeldReply {
                        event: *event,
                        no: *no,
                        content: content.clone(),
                        taken: *taken,
                    });
                }
                ReplyState::Awaited if self.is_awaited_from(row.event, &row.target) => rest = HeldState::Running,
                _ if rest == HeldState::Nothing => rest = HeldState::Ended(row.event),
                _ => {}
            }
        }
        rest
    }

    pub(super) fn await_late(&mut self, late: &LateReply) -> HeldState {
        let LateReply { event, targets, account, user, until, now } = late;
        let is_wait = |state| matches!(state, ReplyState::Awaited | ReplyState::Ended);
        let is_given = self.held.iter().any(|row| row.event == *event && !is_wait(row.state));
        for target in targets.iter().filter(|_| !is_given) {
            if !self.is_awaited_from(*event, target) {
                continue;
            }
            let is_same = |row: &&mut HeldRow| row.event == *event && row.target == *target && is_wait(row.state);
            if let Some(row) = self.held.iter_mut().find(is_same) {
                (row.state, row.expires_at) = (ReplyState::Awaited, Some(*until));
                continue;
            }
            let no = self.next_no(*event);
            self.held.push(HeldRow {
                event: *event,
                no,
                target: Arc::clone(target),
                state: ReplyState::Awaited,
                attempt: None,
                taken: 0,
                expires_at: Some(*until),
                account: Arc::clone(account),
                user: user.clone(),
                content: String::new(),
            });
        }
        self.find_held(&HeldQuery { account: account.clone(), user: user.clone(), event: Some(*event), now: *now })
    }

    pub(in crate::queue) fn give(&mut self, given: &GivenReply, now: UnixMillis) -> Option<ReplyState> {
        let GivenReply { event, target, attempt, account, user, content, keep, used } = given;
        // One that another replica has answered without was not sent.
        let used = if self.is_decided(*event) && *used != ReplyUse::Outdone { ReplyUse::Late } else { *used };
        let is_sent = matches!(used, ReplyUse::Sent(_));
        let (mut is_known, mut given_before) = (false, false);
        for row in self.held.iter_mut().filter(|row| row.event == *event) {
            let is_same = row.target == *target && row.attempt == Some(*attempt);
            if is_sent && row.state == ReplyState::Held && row.taken == 0 {
                (row.state, row.taken, row.expires_at) = match used {
                    _ if !is_same => (ReplyState::Superseded, 0, None),
                    ReplyUse::Sent(Some(end)) => (ReplyState::Held, end, row.expires_at),
                    _ => (ReplyState::Sent, 0, None),
                };
            }
            is_known |= is_same;
            given_before |= !matches!(row.state, ReplyState::Awaited | ReplyState::Ended | ReplyState::Superseded);
        }
        if is_known || !self.events.contains_key(event) {
            return None;
        }
        let is_theirs = |row: &&HeldRow| row.account == *account && row.user == *user && row.state == ReplyState::Held;
        let held = self.held.iter().filter(is_theirs).filter(|row| row.expires_at.is_some_and(|at| at > now)).count();
        let state = state_of(used, given_before, held);
        let no = self.next_no(*event);
        if state != ReplyState::Superseded {
            let is_wait = |state| matches!(state, ReplyState::Awaited | ReplyState::Ended);
            self.held.retain(|row| row.event != *event || !is_wait(row.state));
        }
        self.held.push(HeldRow {
            event: *event,
            no,
            target: Arc::clone(target),
            state,
            attempt: Some(*attempt),
            taken: if let ReplyUse::Sent(Some(end)) = used { end } else { 0 },
            expires_at: (state == ReplyState::Held).then(|| now.after(*keep)),
            account: Arc::clone(account),
            user: user.clone(),
            content: content.clone(),
        });
        Some(state)
    }

    pub(in crate::queue) fn end_wait(&mut self, event: EventId, target: &Arc<str>) {
        let is_same = |row: &&mut HeldRow| row.event == event && row.target == *target;
        let waits = self.held.iter_mut().filter(is_same).filter(|row| row.state == ReplyState::Awaited);
        waits.for_each(|row| row.state = ReplyState::Ended);
    }

    fn take(&mut self, take: &TakeReply) -> bool {
        let TakeReply { held, until, by, reply, expires_at } = take;
        let is_it = |row: &&mut HeldRow| {
            (row.event, row.no, row.taken, row.state) == (held.event, held.no, held.taken, ReplyState::Held)
        };
        let Some(row) = self.held.iter_mut().find(is_it) else { return false };
        (row.state, row.taken, row.expires_at) = match until {
            Some(until) => (ReplyState::Held, *until, Some(*expires_at)),
            None if held.event == *by => (ReplyState::Sent, row.taken, None),
            None => (ReplyState::PickedUp, row.taken, None),
        };
        self.set_reply(*by, reply.clone());
        true
    }

    fn expire(&mut self, now: UnixMillis) -> Vec<(String, u64)> {
        let mut expired = std::collections::BTreeMap::<String, u64>::new();
        let is_old = |row: &HeldRow| row.expires_at.is_some_and(|at| at <= now);
        self.held.retain(|row| row.state == ReplyState::Held || !is_old(row));
        for row in self.held.iter_mut().filter(|row| row.state == ReplyState::Held && is_old(row)) {
            (row.state, row.expires_at) = (ReplyState::Expired, None);
            *expired.entry(row.account.to_string()).or_default() += 1;
        }
        expired.into_iter().collect()
    }
}

impl ModelEngine {
    pub(in crate::queue) async fn record_reply(
        &self,
        event: EventId,
        reply: String,
        given: Option<GivenReply>,
    ) -> Result<bool, Error> {
        let record = move |rows: &mut StoreRows| {
            let is_stored = rows.reply(event, Some(reply.clone()));
            if let Some(given) = &given {
                rows.give(given, UnixMillis::now());
            }
            is_stored
        };
        self.replica.insist(record).await
    }

    pub(in crate::queue) async fn held(&self, query: HeldQuery) -> Result<HeldState, Error> {
        self.replica.call(LEASE_TRY, move |rows| rows.find_held(&query)).await
    }

    pub(in crate::queue) async fn await_late(&self, late: LateReply) -> Result<HeldState, Error> {
        self.replica.call(LEASE_TRY, move |rows| rows.await_late(&late)).await
    }

    pub(in crate::queue) async fn take(&self, take: TakeReply) -> Result<bool, Error> {
        self.replica.call(LEASE_TRY, move |rows| rows.take(&take)).await
    }

    pub(in crate::queue) async fn forget_ended(&self, event: EventId) -> Result<(), Error> {
        let forget = move |rows: &mut StoreRows| {
            rows.held.retain(|row| row.event != event || row.state != ReplyState::Ended);
        };
        self.replica.call(LEASE_TRY, forget).await
    }

    pub(in crate::queue) async fn expire_held(&self, now: UnixMillis) -> Result<Vec<(String, u64)>, Error> {
        self.replica.call(LEASE_TRY, move |rows| rows.expire(now)).await
    }
}
