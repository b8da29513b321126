//! Which target replies, by the order of the list and of the offers.

use std::future::{pending, ready};

use bytes::Bytes;

use super::*;
use crate::event::EventId;
use crate::metrics::Metrics;
use crate::wechat::{Message, Mode, ReplyError};

fn event() -> Event {
    let clear = Bytes::from_static(b"<xml><ToUserName>gh</ToUserName><FromUserName>o1</FromUserName></xml>");
    Event {
        id: EventId(1),
        account: "shop".into(),
        app_id: "wx1".into(),
        mode: Mode::Plaintext,
        received_at: UnixMillis(0),
        query: String::new(),
        body: clear.clone(),
        message: Message::parse(&clear).unwrap(),
        clear,
        traceparent: None,
    }
}

/// What a target does: replies, says nothing, breaks the rules, fails, or is not ready.
#[derive(Clone, Copy, Debug)]
enum Does {
    Reply,
    Nothing,
    Illegal,
    Fail,
    Hang,
}

/// The index of the target whose reply is used, the result, and what each target that replied learned.
async fn chosen(
    targets: &[Does],
    fixed: bool,
    is_over: bool,
) -> (Option<String>, Option<&'static str>, Vec<Option<ReplyChoice>>) {
    let fixed = fixed.then(|| ReplyBody::Text { content: "fixed".to_owned() });
    let asked = (0..targets.len()).map(|index| Arc::from(index.to_string())).collect();
    let rule = ReplyRule { asked, fixed };
    let (replier, awaited) = Replier::new(Some(&rule), &event(), Instant::now());
    let (mut told, mut hanging) = (Vec::new(), Vec::new());
    for (does, (name, awaited)) in targets.iter().zip(awaited) {
        assert_eq!(awaited.first, &*name == "0", "only the first is no reserve");
        let reply = match does {
            Does::Reply => Ok(Some(OfferedReply { clear: name.to_string(), is_cut: false, end: None, given: None })),
            Does::Nothing => Ok(None),
            Does::Illegal => Err(ReplyError::MsgType),
            Does::Fail => continue,
            Does::Hang => {
                hanging.push(awaited);
                continue;
            }
        };
        let (choice, fated) = oneshot::channel();
        assert!(awaited.sender.send(ReplyOffer { reply, failed: None, choice }).is_ok());
        if matches!(does, Does::Reply) {
            told.push(fated);
        }
    }
    let metrics = Metrics::new().account("shop");
    let ChosenReply { reply, result, .. } = if is_over {
        replier.reply(event().id, &metrics, &LogThrottle::default(), ready(())).await
    } else {
        replier.reply(event().id, &metrics, &LogThrottle::default(), pending()).await
    };
    let told = told.into_iter().map(|mut told| told.try_recv().ok()).collect();
    (reply.map(|reply| if reply.contains("fixed") { "fixed".to_owned() } else { reply }), result, told)
}

#[tokio::test]
async fn the_first_in_the_list_that_replies_wins() {
    use Does::{Fail, Hang, Illegal, Nothing, Reply};
    let (used, outdone) = (Some(ReplyChoice::Used), Some(ReplyChoice::Outdone));
    for (targets, is_over, winner, told) in [
        (&[Reply][..], false, "0", vec![used]),
        (&[Reply, Reply], false, "0", vec![used, outdone]),
        (&[Reply, Hang], false, "0", vec![used]),
        (&[Nothing, Reply, Reply], false, "1", vec![used, outdone]),
        (&[Illegal, Fail, Reply], false, "2", vec![used]),
        (&[Hang, Reply, Reply], true, "1", vec![used, outdone]),
        (&[Reply, Reply], true, "0", vec![used, outdone]),
    ] {
        let chosen = chosen(targets, true, is_over).await;
        assert_eq!(chosen, (Some(winner.to_owned()), Some("replied"), told), "{targets:?}");
    }
}

#[tokio::test]
async fn where_nobody_replies_the_fixed_reply_or_the_weightiest_reason_counts() {
    use Does::{Fail, Hang, Illegal, Nothing};
    for (targets, result) in [
        (&[][..], None),
        (&[Nothing][..], Some("none")),
        (&[Fail, Nothing], Some("failed")),
        (&[Illegal, Fail], None),
        (&[Illegal, Hang, Nothing], Some("timeout")),
    ] {
        assert_eq!(chosen(targets, false, true).await, (None, result, Vec::new()), "{targets:?}");
        let fixed = chosen(targets, true, true).await;
        assert_eq!(fixed, (Some("fixed".to_owned()), Some("fixed"), Vec::new()), "{targets:?}");
    }
}
