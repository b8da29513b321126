//! The checks of every accepted reply.

use wxrelay::wechat::{Message, Reply, xml};

pub(crate) fn check(answer: &[u8]) {
    let Ok(Some(reply)) = Reply::parse(answer) else { return };
    reply.check().expect("what is let through is legal");
    let push = "<xml><ToUserName>gh</ToUserName><FromUserName>o1</FromUserName><CreateTime>1</CreateTime></xml>";
    let push = Message::parse(push.as_bytes()).expect("our own push");
    let rendered = reply.render(&push, 1_795_161_600);
    let root = xml::parse(&rendered).expect("a reply is XML");
    assert!(!rendered.contains(|sign: char| sign < ' ' && !"\t\n\r".contains(sign)), "a sign that XML forbids");
    for name in ["ToUserName", "FromUserName", "CreateTime", "MsgType"] {
        assert!(root.child(name).is_some(), "no {name}");
    }
    // Characters that XML forbids are left out, so the rest may be empty, and then it is no reply any more.
    if let Ok(Some(again)) = Reply::parse(rendered.as_bytes()) {
        assert_eq!(again.body.msg_type(), reply.body.msg_type());
        assert_eq!(again.render(&push, 1_795_161_600), rendered);
    }
}
