//! Held replies, on every engine: each is given once, whatever happens between.

use std::time::Duration;

use super::fixture::{NOW, QueueFixture, TestEngine, new_event_of, on_every_engine, settlement};
use super::*;

const KEEP: Duration = Duration::from_secs(600);
const TEXT: &str = "ta reply of the bot";

fn query(now: UnixMillis) -> HeldQuery {
    HeldQuery { account: "shop".into(), user: "o1".to_owned(), event: None, now }
}

fn given(event: EventId, at: i64, used: ReplyUse) -> GivenReply {
    GivenReply {
        event,
        target: "bot".into(),
        attempt: (1, UnixMillis(NOW.0 + at)),
        account: "shop".into(),
        user: "o1".to_owned(),
        content: TEXT.to_owned(),
        keep: KEEP,
        used,
    }
}

fn late(event: EventId, now: UnixMillis) -> LateReply {
    let (account, user) = ("shop".into(), "o1".to_owned());
    LateReply { event, targets: vec!["bot".into()], account, user, until: now.after(KEEP), now }
}

/// Settles the bot's delivery with a reply; what became of it.
async fn settle(fixture: &QueueFixture, given: GivenReply) -> Option<ReplyState> {
    let ended = settlement(given.event, "bot", Disposition::End(DeliveryState::Delivered), 1);
    fixture.queue.settle(Settlement { reply: Some(SettledReply::Given(Box::new(given))), ..ended }).await.unwrap()
}

async fn held(fixture: &QueueFixture) -> HeldState {
    fixture.queue.held(query(UnixMillis::now())).await.unwrap()
}

async fn expect_held(fixture: &QueueFixture) -> HeldReply {
    let HeldState::Held(held) = held(fixture).await else { panic!("nothing is held") };
    assert_eq!(held.content, TEXT);
    held
}

fn take(held: HeldReply, by: EventId, until: Option<usize>) -> TakeReply {
    let expires_at = UnixMillis::now().after(KEEP);
    TakeReply { held, until, by, reply: "<xml>a reply</xml>".to_owned(), expires_at }
}

async fn a_late_reply_is_held_over_a_restart_and_given_once(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let question = fixture.store("why?", &["bot"]).await;
    let now = UnixMillis::now();
    assert_eq!(held(&fixture).await, HeldState::Nothing);
    assert_eq!(fixture.queue.await_late(late(question, now)).await.unwrap(), HeldState::Running);
    assert_eq!(held(&fixture).await, HeldState::Running);
    assert_eq!(settle(&fixture, given(question, 0, ReplyUse::Late)).await, Some(ReplyState::Held));
    let fixture = fixture.reopen().await;
    let found = expect_held(&fixture).await;
    assert_eq!(fixture.queue.stats().await.unwrap().held_replies["shop"], 1);
    let pick_up = fixture.store("1", &[]).await;
    assert!(fixture.queue.take(take(found.clone(), pick_up, Some(5))).await.unwrap());
    assert!(!fixture.queue.take(take(found, pick_up, None)).await.unwrap(), "that part is given");
    let rest = expect_held(&fixture).await;
    assert_eq!(rest.taken, 5);
    assert!(fixture.queue.take(take(rest, pick_up, None)).await.unwrap());
    assert_eq!(held(&fixture).await, HeldState::Nothing);
    let again = fixture.queue.enqueue(fixture.event("1", &[])).await.unwrap();
    assert!(
        matches!(again, Enqueued::Duplicate { reply: Known::Answered(Some(reply)), .. } if reply.contains("a reply"))
    );
    let audit = fixture.audit().await;
    assert_eq!((audit.replies.given, audit.replies.picked_up), (1, 1));
    let inspect = fixture.inspect().await;
    let detail = inspect.event(question).await.unwrap().unwrap();
    assert_eq!((detail.replies[0].state, detail.replies[0].picked_up_by), (ReplyState::PickedUp, Some(pick_up)));
    assert_eq!(inspect.event(pick_up).await.unwrap().unwrap().picked_up, Some(question));
}

async fn a_reply_counts_once_and_a_second_one_is_superseded(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let question = fixture.store("why?", &["bot", "crm"]).await;
    let sent = given(question, 0, ReplyUse::Sent(None));
    assert!(fixture.queue.record_reply(question, "<xml/>".to_owned(), Some(sent.clone())).await.unwrap());
    assert_eq!(settle(&fixture, sent).await, None, "it is in the ledger already");
    let second = GivenReply { target: "crm".into(), ..given(question, 1, ReplyUse::Late) };
    let ended = settlement(question, "crm", Disposition::End(DeliveryState::Delivered), 1);
    let second = Settlement { reply: Some(SettledReply::Given(Box::new(second))), ..ended };
    assert_eq!(fixture.queue.settle(second).await.unwrap(), Some(ReplyState::Superseded));
    let replies = fixture.audit().await.replies;
    assert_eq!((replies.given, replies.sent, replies.superseded, replies.held), (2, 1, 1, 0));
    assert_eq!(held(&fixture).await, HeldState::Nothing);
}

async fn a_reply_in_reserve_that_is_used_counts_as_sent(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let question = fixture.store("why?", &["bot"]).await;
    assert_eq!(settle(&fixture, given(question, 0, ReplyUse::Late)).await, Some(ReplyState::Held), "in reserve");
    let used = given(question, 0, ReplyUse::Sent(Some(4)));
    assert!(fixture.queue.record_reply(question, "<xml/>".to_owned(), Some(used)).await.unwrap());
    assert_eq!(expect_held(&fixture).await.taken, 4, "the rest of it");
    let other = fixture.store("and?", &["bot"]).await;
    assert_eq!(settle(&fixture, given(other, 0, ReplyUse::Late)).await, Some(ReplyState::Held));
    let used = given(other, 0, ReplyUse::Sent(None));
    assert!(fixture.queue.record_reply(other, "<xml/>".to_owned(), Some(used)).await.unwrap());
    let replies = fixture.audit().await.replies;
    assert_eq!((replies.given, replies.sent, replies.held), (2, 1, 1));
}

async fn the_split_rest_of_a_sent_reply_is_held(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let question = fixture.store("tell me", &["bot"]).await;
    let sent = given(question, 0, ReplyUse::Sent(Some(6)));
    fixture.queue.record_reply(question, "<xml/>".to_owned(), Some(sent.clone())).await.unwrap();
    assert_eq!(settle(&fixture, sent).await, None);
    assert_eq!(expect_held(&fixture).await.taken, 6);
    fixture.audit().await;
}

async fn five_are_held_and_the_sixth_is_dropped(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    for number in 0..6 {
        let question = fixture.store(&format!("question {number}"), &["bot"]).await;
        let expected = if number < MAX_HELD { ReplyState::Held } else { ReplyState::Dropped };
        assert_eq!(settle(&fixture, given(question, 0, ReplyUse::Late)).await, Some(expected));
    }
    let replies = fixture.audit().await.replies;
    assert_eq!((replies.given, replies.held, replies.dropped), (6, 5, 1));
}

async fn what_is_not_asked_for_expires_and_ended_waits_are_told_once(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let (one, two) = (fixture.store("one?", &["bot"]).await, fixture.store("two?", &["bot"]).await);
    let now = UnixMillis::now();
    settle(&fixture, given(one, 0, ReplyUse::Late)).await;
    assert_eq!(fixture.queue.await_late(late(two, now)).await.unwrap(), HeldState::Running);
    let ended = settlement(two, "bot", Disposition::End(DeliveryState::Dead), 1);
    fixture.queue.settle(Settlement { reply: Some(SettledReply::None), ..ended }).await.unwrap();
    let only = HeldQuery { event: Some(two), ..query(now) };
    assert_eq!(fixture.queue.held(only).await.unwrap(), HeldState::Ended(two));
    let end = now.after(KEEP + KEEP);
    assert_eq!(fixture.queue.held(query(end)).await.unwrap(), HeldState::Nothing);
    assert_eq!(fixture.queue.expire_held(end).await.unwrap(), [("shop".to_owned(), 1)]);
    assert_eq!(fixture.queue.expire_held(end).await.unwrap(), []);
    assert_eq!(held(&fixture).await, HeldState::Nothing);
    assert_eq!(fixture.audit().await.replies.expired, 1);

    let three = fixture.store("three?", &["bot"]).await;
    fixture.queue.await_late(late(three, now)).await.unwrap();
    let ended = settlement(three, "bot", Disposition::End(DeliveryState::Dead), 1);
    fixture.queue.settle(Settlement { reply: Some(SettledReply::None), ..ended }).await.unwrap();
    assert_eq!(held(&fixture).await, HeldState::Ended(three));
    fixture.queue.forget_ended(three).await.unwrap();
    assert_eq!(held(&fixture).await, HeldState::Nothing);
}

async fn a_forgotten_user_leaves_no_reply_behind_and_the_ledger_adds_up(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let new = new_event_of(fixture.queue.next_id(NOW), "o1", "mine", &["bot"]);
    let id = new.event.id;
    fixture.queue.enqueue(new).await.unwrap();
    settle(&fixture, given(id, 0, ReplyUse::Late)).await;
    let filter = EventFilter { from: Some("o1".to_owned()), ..EventFilter::default() };
    let sweep = Sweep { filter, events: None, action: SweepAction::Forget };
    assert_eq!(fixture.queue.sweep_all(sweep, NOW).await.unwrap(), 1);
    assert_eq!(held(&fixture).await, HeldState::Nothing);
    assert!(fixture.audit().await.replies.is_empty());
}

async fn a_damaged_reply_is_not_given_and_the_deep_audit_finds_it(engine: TestEngine) {
    let fixture = QueueFixture::open(engine).await;
    let question = fixture.store("why?", &["bot"]).await;
    settle(&fixture, given(question, 0, ReplyUse::Late)).await;
    let inspect = fixture.inspect().await;
    let newest = inspect.newest().await.unwrap().unwrap();
    assert!(inspect.read_back(None, newest).await.unwrap().events[0].flaws.is_empty());
    fixture.execute("UPDATE held_reply SET checksum = checksum + 1");
    assert_eq!(held(&fixture).await, HeldState::Nothing);
    assert_eq!(inspect.read_back(None, newest).await.unwrap().events[0].flaws, [Flaw::HeldReply]);
    fixture.execute("UPDATE held_reply SET state = 3");
    assert!(!inspect.audit().await.unwrap().is_clean(), "the counts differ from the rows");
}

on_every_engine!(
    a_late_reply_is_held_over_a_restart_and_given_once,
    a_reply_counts_once_and_a_second_one_is_superseded,
    a_reply_in_reserve_that_is_used_counts_as_sent,
    the_split_rest_of_a_sent_reply_is_held,
    five_are_held_and_the_sixth_is_dropped,
    what_is_not_asked_for_expires_and_ended_waits_are_told_once,
    a_forgotten_user_leaves_no_reply_behind_and_the_ledger_adds_up,
    a_damaged_reply_is_not_given_and_the_deep_audit_finds_it,
);

/// The model keeps the same rules.
#[tokio::test(start_paused = true)]
async fn a_late_reply_is_given_once_by_whichever_replica_of_the_model() {
    let store = model::ModelStore::new(model::BrokenRule::None);
    let open = async || Queue::model(&store, Default::default(), &Tuning::default()).await.unwrap();
    let (one, two) = (open().await, open().await);
    let new = new_event_of(one.next_id(NOW), "o1", "why?", &["bot"]);
    let question = new.event.id;
    one.enqueue(new).await.unwrap();
    let now = UnixMillis::now();
    assert_eq!(two.await_late(late(question, now)).await.unwrap(), HeldState::Running);
    let ended = settlement(question, "bot", Disposition::End(DeliveryState::Delivered), 1);
    let reply = Some(SettledReply::Given(Box::new(given(question, 0, ReplyUse::Late))));
    assert_eq!(one.settle(Settlement { reply, ..ended }).await.unwrap(), Some(ReplyState::Held));
    let HeldState::Held(found) = two.held(query(now)).await.unwrap() else { panic!("nothing is held") };
    assert!(two.take(take(found.clone(), question, None)).await.unwrap());
    assert!(!one.take(take(found, question, None)).await.unwrap());
    assert_eq!(one.held(query(now)).await.unwrap(), HeldState::Nothing);
}
