//! Tests of `reply`: what is read, what is refused, and what WeChat gets.

use super::*;

fn push() -> Message {
    Message::parse(b"<xml><ToUserName>gh_1</ToUserName><FromUserName>o_1</FromUserName></xml>").unwrap()
}

fn text_reply(content: &str) -> Reply {
    Reply::new(ReplyBody::Text { content: content.into() })
}

fn read(body: &str) -> Result<Option<Reply>, ReplyError> {
    Reply::parse(body.as_bytes())
}

fn every_kind() -> Vec<ReplyBody> {
    let some = |text: &str| Some(text.to_owned());
    vec![
        ReplyBody::Text { content: "a]]>b\n你".into() },
        ReplyBody::Image { media_id: "m".into() },
        ReplyBody::Voice { media_id: "m".into() },
        ReplyBody::Video { media_id: "m".into(), title: some("t"), description: None },
        ReplyBody::Music {
            title: some("t"),
            description: some("d"),
            music_url: some("http://a/?b&c"),
            hq_music_url: None,
            thumb_media_id: some("m"),
        },
        ReplyBody::News {
            articles: vec![
                Article { title: "t".into(), description: some(""), pic_url: some("p"), url: some("u") },
                Article { title: "t2".into(), description: some(""), pic_url: some(""), url: some("") },
            ],
        },
        ReplyBody::TransferCustomerService { kf_account: some("a@b") },
        ReplyBody::TransferCustomerService { kf_account: None },
    ]
}

#[test]
fn nothing_blanks_and_success_are_no_reply() {
    for body in ["", " \r\n", "success", "\u{feff}success\n", r#"{"reply":null}"#] {
        assert_eq!(read(body).unwrap(), None, "{body}");
    }
}

#[test]
fn milliseconds_in_create_time_become_seconds() {
    let body = "<xml><CreateTime>1795161600123</CreateTime><MsgType>text</MsgType><Content>hi</Content></xml>";
    let rendered = read(body).unwrap().unwrap().render(&push(), 1);
    assert!(rendered.contains("<CreateTime>1795161600</CreateTime>"), "{rendered}");
}

#[test]
fn names_lose_the_white_space_around_them_once_forbidden_characters_are_gone() {
    let names = |name: &str| Reply { to_user: Some(name.into()), from_user: Some(name.into()), ..text_reply("hi") };
    for (name, to, from) in
        [(" o_2\0\n", "o_2", "o_2"), ("\0\r[gh]]\u{1} ", "[gh]]", "[gh]]"), ("\0 \0", "o_1", "gh_1")]
    {
        let root = xml::parse(&names(name).render(&push(), 1)).unwrap();
        assert_eq!((root.text_of("ToUserName"), root.text_of("FromUserName")), (Some(to), Some(from)), "{name:?}");
    }
}

#[test]
fn every_kind_is_read_from_the_xml_it_renders_to() {
    for body in every_kind() {
        let reply = Reply::new(body.clone());
        let rendered = reply.render(&push(), 1_795_161_600);
        let expected = Reply {
            to_user: Some("o_1".into()),
            from_user: Some("gh_1".into()),
            create_time: Some(1_795_161_600),
            body,
        };
        assert_eq!(read(&rendered).unwrap(), Some(expected), "{rendered}");
    }
}

#[test]
fn every_kind_is_read_from_json() {
    let bodies = [
        r#""msg_type":"text","content":"a]]>b\n你""#,
        r#""msg_type":"image","media_id":"m""#,
        r#""msg_type":"voice","media_id":"m""#,
        r#""msg_type":"video","media_id":"m","title":"t""#,
        r#""msg_type":"music","title":"t","description":"d","music_url":"http://a/?b&c","thumb_media_id":"m""#,
        r#""msg_type":"news","articles":[{"title":"t","pic_url":"p","url":"u"},{"title":"t2"}]"#,
        r#""msg_type":"transfer_customer_service","kf_account":"a@b""#,
        r#""msg_type":"transfer_customer_service""#,
    ];
    for (json, body) in bodies.into_iter().zip(every_kind()) {
        assert_eq!(read(&format!(r#"{{"reply":{{{json}}}}}"#)).unwrap(), Some(Reply::new(body)), "{json}");
    }
}

#[test]
fn renders_as_wechat_wants_it() {
    let reply = Reply { create_time: Some(7), ..text_reply("a]]>b") };
    assert_eq!(
        reply.render(&push(), 1_795_161_600),
        "<xml><ToUserName><![CDATA[o_1]]></ToUserName>\n<FromUserName><![CDATA[gh_1]]></FromUserName>\n\
         <CreateTime>7</CreateTime>\n<MsgType><![CDATA[text]]></MsgType>\n\
         <Content><![CDATA[a]]]]><![CDATA[>b]]></Content>\n</xml>"
    );
    let news = Reply::new(every_kind().remove(5)).render(&push(), 1);
    assert!(news.contains("<ArticleCount>2</ArticleCount>\n<Articles><item><Title>"), "{news}");
}

#[test]
fn forbidden_characters_are_left_out_for_wechat() {
    let rendered = text_reply("a\u{0}\u{10}\u{1d}\u{b}b\t\n😀\u{ffff}").render(&push(), 1);
    assert!(rendered.contains("<![CDATA[ab\t\n😀]]>"), "{rendered}");
}

#[test]
fn a_json_push_gets_a_json_reply() {
    let push = Message::parse(br#"{"ToUserName":"gh_1","FromUserName":"o_1"}"#).unwrap();
    let reply = Reply::new(ReplyBody::TransferCustomerService { kf_account: None }).render(&push, 9);
    assert_eq!(
        reply,
        r#"{"ToUserName":"o_1","FromUserName":"gh_1","CreateTime":9,"MsgType":"transfer_customer_service"}"#
    );
}

#[test]
fn texts_have_any_length_but_none() {
    assert!(text_reply(&"你".repeat(683)).check().is_ok(), "cut or split before it is sent");
    for empty in ["", " \n", "\u{10}"] {
        assert!(matches!(text_reply(empty).check(), Err(ReplyError::Empty("Content"))), "{empty:?}");
    }
}

#[test]
fn what_wechat_would_not_take_is_refused() {
    use ReplyError::{Articles, Empty, Json, MsgType, Sealed, Unreadable};
    type Check = fn(&ReplyError) -> bool;
    let article = r#"{"title":"t","url":"u"}"#;
    let cases: &[(String, Check)] = &[
        ("\"success\"".into(), |e| matches!(e, Unreadable(_))),
        ("Success!".into(), |e| matches!(e, Unreadable(_))),
        ("<html>".into(), |e| matches!(e, Unreadable(_))),
        ("<html></html>".into(), |e| matches!(e, MsgType)),
        ("<xml><MsgType>gif</MsgType></xml>".into(), |e| matches!(e, MsgType)),
        ("<xml><Encrypt>x</Encrypt></xml>".into(), |e| matches!(e, Sealed)),
        (r#"{"Encrypt":"x","Nonce":"1"}"#.into(), |e| matches!(e, Sealed)),
        ("<xml><MsgType>image</MsgType></xml>".into(), |e| matches!(e, Empty("MediaId"))),
        ("<xml><MsgType>image</MsgType><MediaId>m</MediaId></xml>".into(), |e| matches!(e, Empty("MediaId"))),
        ("<xml><MsgType>music</MsgType><Music><Title>t</Title></Music></xml>".into(), |e| {
            matches!(e, Empty("MusicUrl"))
        }),
        ("<xml><MsgType>news</MsgType></xml>".into(), |e| matches!(e, Articles(0))),
        (format!(r#"{{"reply":{{"msg_type":"news","articles":[{}]}}}}"#, [article; 9].join(",")), |e| {
            matches!(e, Articles(9))
        }),
        (r#"{"reply":{"msg_type":"news","articles":[{"title":"","url":"u"}]}}"#.into(), |e| {
            matches!(e, Empty("Title"))
        }),
        (r#"{"reply":{"msg_type":"news","articles":[{"url":"u"}]}}"#.into(), |e| matches!(e, Json)),
        (r#"{"reply":{"msg_type":"text","content":""}}"#.into(), |e| matches!(e, Empty("Content"))),
        (r#"{"reply":{"msg_type":"text"}}"#.into(), |e| matches!(e, Json)),
        (r#"{"reply":{"msg_type":"gif","content":"x"}}"#.into(), |e| matches!(e, Json)),
        (r#"{"reply":"hi"}"#.into(), |e| matches!(e, Json)),
        (r#"{"code":0}"#.into(), |e| matches!(e, Json)),
        ("{}".into(), |e| matches!(e, Json)),
        ("{".into(), |e| matches!(e, Json)),
    ];
    for (body, check) in cases {
        let error = read(body).expect_err(body);
        assert!(check(&error), "{body}: {error:?}");
    }
}

#[test]
fn debug_and_errors_do_not_quote_the_reply() {
    assert_eq!(format!("{:?}", text_reply("my secret")), "Reply { body: text, .. }");
    let error = read(r#"{"reply":{"msg_type":"my secret"}}"#).unwrap_err();
    assert!(!format!("{error:?} {error}").contains("secret"));
}

/// Found by fuzzing: what is rendered was another reply when it was read again.
#[test]
fn a_reply_that_is_rendered_and_read_again_is_the_same() {
    let push = push();
    for reply in [
        r#"{"reply":{"msg_type":"video","media_id":"m","title":"","description":""}}"#,
        r#"{"reply":{"msg_type":"transfer_customer_service","kf_account":""}}"#,
        r#"{"reply":{"msg_type":"text","content":"hi","create_time":11144907877866187367}}"#,
        r#"{"reply":{"msg_type":"text","content":"hi","create_time":1795161600123}}"#,
        r#"{"reply":{"msg_type":"text","content":"hi","to_user":"\u0001","from_user":""}}"#,
        r#"{"reply":{"msg_type":"video","media_id":"m","title":"\u0001","description":"\u0008\u0002"}}"#,
        "<xml><FromUserName><![CDATA[\u{2}\u{1}]]></FromUserName><MsgType>text</MsgType><Content>hi</Content></xml>",
    ] {
        let rendered = read(reply).unwrap().unwrap().render(&push, 1_795_161_600);
        let again = read(&rendered).unwrap().unwrap().render(&push, 1_795_161_600);
        assert_eq!(again, rendered, "{reply}");
        assert!(rendered.contains("<ToUserName><![CDATA[o_1]]>"), "{rendered}");
        assert!(rendered.contains("<FromUserName><![CDATA[gh_1]]>"), "{rendered}");
    }
}

#[test]
fn white_space_around_names_kinds_and_times_does_not_count() {
    let body = "<xml>\n<ToUserName>\n <![CDATA[o_1]]> </ToUserName><FromUserName> gh_1\n</FromUserName>\
                <CreateTime> 7 </CreateTime><MsgType>\n<![CDATA[text]]>\n</MsgType><Content> hi </Content></xml>\n";
    let reply = read(body).unwrap().unwrap();
    assert_eq!(
        (reply.to_user.as_deref(), reply.from_user.as_deref(), reply.create_time),
        (Some("o_1"), Some("gh_1"), Some(7))
    );
    assert_eq!(reply.body, ReplyBody::Text { content: " hi ".into() }, "the text is the user's");
}

#[test]
fn an_article_is_passed_on_with_what_it_has() {
    let news = |item: &str| {
        let body = format!("<xml><MsgType>news</MsgType><Articles><item>{item}</item></Articles></xml>");
        read(&body).unwrap().unwrap().render(&push(), 1).replace('\n', "")
    };
    let rendered = news("<Title>t</Title><PicUrl>p</PicUrl>");
    assert!(rendered.contains("<item><Title><![CDATA[t]]></Title><PicUrl><![CDATA[p]]></PicUrl></item>"), "{rendered}");
    let rendered = news("<Title>t</Title><Url/>");
    assert!(
        rendered.contains("<item><Title><![CDATA[t]]></Title><Url></Url></item>")
            || rendered.contains("<item><Title><![CDATA[t]]></Title><Url><![CDATA[]]></Url></item>"),
        "{rendered}"
    );
}

mod properties {
    use proptest::option::of;
    use proptest::prelude::*;

    use super::*;

    /// Any text, with what is special to XML and what XML forbids.
    fn content() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("]]>".to_owned()),
            Just(String::new()),
            Just("\u{1}".to_owned()),
            "[ \n]{0,2}\\PC{0,12}[ \n]{0,2}"
        ]
    }

    fn some_reply() -> impl Strategy<Value = ReplyBody> {
        let article = (content(), of(content()), of(content()), of(content()))
            .prop_map(|(title, description, pic_url, url)| Article { title, description, pic_url, url });
        let music = (of(content()), of(content()), of(content()), of(content()), of(content())).prop_map(
            |(title, description, music_url, hq_music_url, thumb_media_id)| ReplyBody::Music {
                title,
                description,
                music_url,
                hq_music_url,
                thumb_media_id,
            },
        );
        prop_oneof![
            content().prop_map(|content| ReplyBody::Text { content }),
            content().prop_map(|media_id| ReplyBody::Image { media_id }),
            (content(), of(content()), of(content())).prop_map(|(media_id, title, description)| ReplyBody::Video {
                media_id,
                title,
                description
            }),
            music,
            prop::collection::vec(article, 0..10).prop_map(|articles| ReplyBody::News { articles }),
            of(content()).prop_map(|kf_account| ReplyBody::TransferCustomerService { kf_account }),
        ]
    }

    proptest! {
        /// What is accepted is legal when it is sent: it is read again as the same reply, with all names and a time.
        #[test]
        fn an_accepted_reply_is_legal_and_stays_the_same(body in some_reply()) {
            let reply = Reply::new(body);
            if reply.check().is_ok() {
                let rendered = reply.render(&push(), 1_795_161_600);
                let again = read(&rendered).unwrap().expect("a reply");
                prop_assert_eq!(again.to_user.as_deref(), Some("o_1"));
                prop_assert_eq!(again.from_user.as_deref(), Some("gh_1"));
                prop_assert_eq!(again.render(&push(), 1_795_161_600), rendered);
            }
        }

        /// The number of articles alone decides where each has a title.
        #[test]
        fn one_to_eight_articles_are_accepted(number in 0_usize..12) {
            let article = Article { title: "t".into(), description: None, pic_url: None, url: None };
            let reply = Reply::new(ReplyBody::News { articles: vec![article; number] });
            prop_assert_eq!(reply.check().is_ok(), (1..=8).contains(&number));
        }

        /// No answer of a target makes the relay panic, and an error quotes nothing of it.
        #[test]
        fn any_answer_is_read(noise in prop::collection::vec(any::<u8>(), 0..64), open in 0_usize..4) {
            let news = b"<xml><MsgType>news</MsgType><Articles>";
            let mut body = [&b""[..], b"<xml>", b"{\"reply\":", news][open].to_vec();
            body.extend_from_slice(&noise);
            if let Err(error) = Reply::parse(&body) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
