//! Replies that WeChat takes are taken: whatever a handler may answer WeChat directly, it may answer the relay.
//!
//! Sources: easy-swoole/easyswoole #422, antgan/wx-tools #18, wechatpy #392 and #485 (several articles),
//! Eric-Guo/wechat #17 (no Url). The relay's own `simulate` judges each reply as WeChat would.

use serde_json::{Value, json};

use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{GH, PATH, WeChat, element, event, text, text_reply};

const ROUTE: &str = "[[accounts.shop.routes]]\notherwise = true\nto = [\"crm\"]\nreply = \"crm\"\n";

#[tokio::test]
async fn articles_and_music_that_wechat_takes_reach_the_user() {
    let title = "<Title><![CDATA[T]]></Title>";
    let (description, picture, url) =
        ("<Description>D</Description>", "<PicUrl>https://a/p.png</PicUrl>", "<Url>https://a</Url>");
    let article = |parts: &[&str]| format!("<item>{title}{}</item>", parts.concat());
    let whole = article(&[description, picture, url]);
    let news = |items: &[String]| {
        let count = items.len();
        format!("<MsgType>news</MsgType><ArticleCount>{count}</ArticleCount><Articles>{}</Articles>", items.concat())
    };
    let music = |parts: &[&str]| format!("<MsgType>music</MsgType><Music>{}</Music>", parts.concat());
    let (sound, better, thumb) = (
        "<MusicUrl>https://a/a.mp3</MusicUrl>",
        "<HQMusicUrl>https://a/b.mp3</HQMusicUrl>",
        "<ThumbMediaId>M</ThumbMediaId>",
    );
    let rows: [(&str, String, &[&str], &[&str]); 14] = [
        ("two articles", news(&[whole.clone(), whole.clone()]), &["<ArticleCount>2<"], &[]),
        ("eight articles", news(&vec![whole.clone(); 8]), &["<ArticleCount>8<"], &[]),
        ("no Url", news(&[article(&[description, picture])]), &["<Title>", "<PicUrl>"], &["<Url>"]),
        ("an empty Url", news(&[article(&["<Url></Url>"])]), &["<Url>"], &["<PicUrl>"]),
        ("no PicUrl", news(&[article(&[description, url])]), &["<Url>"], &["<PicUrl>"]),
        ("no Description", news(&[article(&[picture, url])]), &["<Url>"], &["<Description>"]),
        ("a Title alone", news(&[article(&[])]), &["<Title>"], &["<Url>"]),
        ("a wrong ArticleCount", news(std::slice::from_ref(&whole)).replace(">1<", ">5<"), &["<ArticleCount>1<"], &[]),
        ("no ArticleCount", news(&[whole]).replace("<ArticleCount>1</ArticleCount>", ""), &["<ArticleCount>1<"], &[]),
        ("no ThumbMediaId", music(&[title, description, sound, better]), &["a.mp3", "b.mp3"], &["ThumbMediaId"]),
        ("a MusicUrl alone", music(&[sound]), &["<MusicUrl>"], &["<Title>", "ThumbMediaId"]),
        ("a ThumbMediaId alone", music(&[thumb]), &["<ThumbMediaId><![CDATA[M]]>"], &["MusicUrl"]),
        ("white space", "<MsgType>\n <![CDATA[text]]>\n</MsgType>\n<Content>hi</Content>\n".to_owned(), &["hi"], &[]),
        (
            "Content twice",
            "<MsgType>text</MsgType><Content>a</Content><Content>b</Content>".to_owned(),
            &["[a]"],
            &["[b]"],
        ),
    ];
    let Fixture { relay, wechat, crm } = fixture("").await;
    for (index, (what, inner, has, lacks)) in rows.into_iter().enumerate() {
        crm.then(Reaction::Answer(Reply::xml(to_o1(&inner))));
        let event = if index % 2 == 0 { text("o1", what) } else { event("o1", "CLICK", what) };
        let clear = wechat.open_reply(relay.accept(&wechat, &event).await.text());
        assert!(has.iter().all(|part| clear.contains(part)), "{what}: {clear}");
        assert!(!lacks.iter().any(|part| clear.contains(part)), "{what}: {clear}");
        shown_to_the_user(&relay, what).await;
    }
}

#[tokio::test]
async fn what_wechat_does_not_take_is_still_refused() {
    let item = "<item><Title>T</Title></item>";
    let news = |items: &str| format!("<MsgType>news</MsgType><Articles>{items}</Articles>");
    let Fixture { relay, wechat, crm } = fixture("").await;
    for (index, (inner, why)) in [
        (news(""), "has 0 articles; expected 1 to 8"),
        (news(&item.repeat(9)), "has 9 articles; expected 1 to 8"),
        (news("<item><Url>https://a</Url></item>"), "Title is missing or empty"),
        (news(&format!("{item}<item><Title> </Title></item>")), "Title is missing or empty"),
        ("<MsgType>music</MsgType><Music><Title>T</Title></Music>".to_owned(), "MusicUrl is missing or empty"),
        ("<MsgType>music</MsgType>".to_owned(), "MusicUrl is missing or empty"),
        ("<MsgType>video</MsgType><Video><Title>T</Title></Video>".to_owned(), "MediaId is missing or empty"),
    ]
    .into_iter()
    .enumerate()
    {
        crm.then(Reaction::Answer(Reply::xml(to_o1(&inner))));
        assert_eq!(relay.accept(&wechat, &text("o1", why)).await.text(), "success", "{inner}");
        let id = crm.delivery(index).await.header("wxrelay-event-id").to_owned();
        let attempt = relay.attempt(&id, "crm", 1, |_| true).await;
        assert!(attempt["error"].as_str().is_some_and(|error| error.contains(why)), "{inner}: {attempt}");
    }
}

#[tokio::test]
async fn the_same_holds_for_json() {
    let Fixture { relay, wechat, crm } = fixture("").await;
    let articles: Vec<Value> = (1..=8).map(|number| json!({ "title": format!("T{number}") })).collect();
    for (reply, has) in [
        (json!({ "msg_type": "news", "articles": articles }), "<ArticleCount>8<"),
        (json!({ "msg_type": "music", "music_url": "https://a/a.mp3" }), "https://a/a.mp3"),
    ] {
        crm.then(Reaction::Answer(Reply::body("application/json", json!({ "reply": reply }).to_string())));
        let clear = wechat.open_reply(relay.accept(&wechat, &text("o1", has)).await.text());
        assert!(clear.contains(has), "{clear}");
        shown_to_the_user(&relay, has).await;
    }
}

#[tokio::test]
async fn fixed_articles_and_music_may_lack_the_same_and_be_several() {
    let picture = "{ title = \"T\", description = \"D\", pic_url = \"https://a.example/p.png\" }";
    for (rule, has) in [
        (format!("{{ news = {picture} }}"), "<ArticleCount>1<"),
        (format!("{{ news = [{picture}, {{ title = \"U\", url = \"https://a\" }}] }}"), "<ArticleCount>2<"),
        ("{ music = { music_url = \"https://a/a.mp3\" } }".to_owned(), "<MusicUrl>"),
    ] {
        let wechat = WeChat::secure();
        let route = format!("[[accounts.shop.routes]]\notherwise = true\nreply = {rule}\n");
        let relay = Relay::start(wechat.account() + &route).await;
        let clear = wechat.open_reply(relay.accept(&wechat, &text("o1", "hi")).await.text());
        assert!(clear.contains(has), "{clear}");
        shown_to_the_user(&relay, &rule).await;
    }
}

#[tokio::test]
async fn a_raw_targets_sealed_reply_is_opened_with_the_key_of_the_push() {
    let wechat = WeChat::secure();
    let old_key = wechat.aes_key.replace('a', "b");
    let (old, other) = (
        WeChat { aes_key: old_key.clone(), ..wechat.clone() },
        WeChat { aes_key: wechat.aes_key.replace('c', "d"), ..wechat.clone() },
    );
    for format in ["raw", "authing-json"] {
        let crm = Target::start().await;
        let previous = format!("previous_encoding_aes_key = \"{old_key}\"\n");
        let settings = format!("format = \"{format}\"");
        let relay = Relay::start(wechat.account() + &previous + ROUTE + &crm.config("crm", &settings)).await;
        for pushed in [&wechat, &old] {
            crm.then(Reaction::Answer(Reply::xml(pushed.seal_reply(&text_reply("o1", "sealed")))));
            let answer = relay.accept(pushed, &text("o1", "hi")).await;
            assert_eq!(element(&pushed.open_reply(answer.text()), "Content").as_deref(), Some("sealed"), "{format}");
        }
        crm.then(Reaction::Answer(Reply::xml(other.seal_reply(&text_reply("o1", "sealed")))));
        assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success", "{format}");
        let id = crm.delivery(2).await.header("wxrelay-event-id").to_owned();
        let attempt = relay.attempt(&id, "crm", 1, |_| true).await;
        assert!(attempt["error"].as_str().is_some_and(|error| error.contains("does not open with")), "{attempt}");
    }
}

#[tokio::test]
async fn a_compressed_reply_is_refused_by_the_name_of_its_coding() {
    let Fixture { relay, wechat, crm } = fixture("").await;
    let mut reply = Reply::xml(&b"\x1f\x8b\x08\x00\x00\x00\x00\x00"[..]);
    reply.headers.push(("content-encoding", "gzip".to_owned()));
    crm.then(Reaction::Answer(reply));
    assert_eq!(relay.accept(&wechat, &text("o1", "hi")).await.text(), "success");
    let id = crm.delivery(0).await.header("wxrelay-event-id").to_owned();
    let attempt = relay.attempt(&id, "crm", 1, |_| true).await;
    let error = attempt["error"].as_str().unwrap_or_default();
    assert!(error.contains("Content-Encoding gzip; expected one without it"), "{attempt}");
}

#[tokio::test]
async fn the_reason_of_a_bad_reply_names_the_form_that_was_expected() {
    let Fixture { relay, wechat, crm } = fixture("").await;
    let json_form = "{\"reply\":{\"msg_type\":\"text\",\"content\":\"...\"}}";
    for (index, (body, expected)) in [
        ("hello", json_form),
        ("{\"text\":\"hello\"}", json_form),
        ("<xml><MsgType>gif</MsgType></xml>", "expected <xml> with the MsgType text, image"),
        ("<xml><Encrypt>x</Encrypt></xml>", "expected a clear one"),
    ]
    .into_iter()
    .enumerate()
    {
        crm.then(Reaction::Answer(Reply::body("text/plain", body)));
        assert_eq!(relay.accept(&wechat, &text("o1", body)).await.text(), "success");
        let id = crm.delivery(index).await.header("wxrelay-event-id").to_owned();
        let attempt = relay.attempt(&id, "crm", 1, |_| true).await;
        assert!(attempt["error"].as_str().is_some_and(|error| error.contains(expected)), "{body}: {attempt}");
    }
}

/// As WeChat, by the relay's own judgement.
async fn shown_to_the_user(relay: &Relay, what: &str) {
    let url = format!("http://{}{PATH}", relay.push);
    let arguments = ["simulate", "--to", &url, "--openid", "o1", "--original-id", GH, "--tries", "1", "text", what];
    let judged = relay.run(&arguments).await;
    assert!(judged.code == Some(0) && judged.stdout.contains("the user is shown this reply"), "{what}: {judged:?}");
}

struct Fixture {
    relay: Relay,
    wechat: WeChat,
    crm: Target,
}

async fn fixture(settings: &str) -> Fixture {
    let (wechat, crm) = (WeChat::secure(), Target::start().await);
    let relay = Relay::start(wechat.account() + ROUTE + &crm.config("crm", settings)).await;
    Fixture { relay, wechat, crm }
}

fn to_o1(inner: &str) -> String {
    format!(
        "<xml><ToUserName><![CDATA[o1]]></ToUserName><FromUserName><![CDATA[{GH}]]></FromUserName>\
         <CreateTime>1700000000</CreateTime>{inner}</xml>"
    )
}
