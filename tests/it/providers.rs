//! Identity providers that the operator runs: what they get, and what of their answers counts.

use crate::support::relay::Relay;
use crate::support::target::{Reaction, Reply, Target};
use crate::support::wechat::{WeChat, event, text};

#[tokio::test]
async fn casdoor_gets_its_own_scans_in_clear_until_it_takes_them() {
    let (casdoor, crm, wechat) = (Target::start().await, Target::start().await, WeChat::secure());
    let base = casdoor.url().replace("/hook", "");
    let login = format!(
        "[targets.login]\nprovider = \"casdoor\"\nbase_url = \"{base}\"\nprovider_id = \"admin/wechat\"\n\
         token = \"casdoorToken\"\nretry = [\"20ms\"]\n"
    );
    let relay = Relay::start(wechat.account() + &login + &crm.config("crm", "")).await;
    let refusal = r#"{"status":"error","msg":"The provider: admin/wechat does not exist"}"#;
    let answer = |kind: &str, text: &str| Reaction::Answer(Reply::body(kind, text));
    casdoor.script([answer("application/json", refusal), answer("text/html", "<!doctype html><p>Casdoor</p>")]);
    relay.accept(&wechat, &event("o1", "subscribe", "qrscene_admin/wechat")).await;
    let deliveries = casdoor.wait_for(3).await;
    for delivery in &deliveries {
        assert_eq!(delivery.path, "/api/webhook");
        let signed = delivery.query.as_deref().is_some_and(|query| query.contains("signature="));
        let clear = delivery.text();
        assert!(signed && clear.contains("<EventKey><![CDATA[admin/wechat]]></EventKey>"), "{clear}");
    }
    relay.accept(&wechat, &event("o1", "SCAN", "spring")).await;
    relay.accept(&wechat, &text("o1", "hello")).await;
    assert_eq!(crm.wait_for(2).await.len(), 2);
    relay.audited("delivered", 3).await;
    assert_eq!(casdoor.deliveries().len(), 3, "scans of other scenes and texts are not for it");
}

#[tokio::test]
async fn wechat_server_gets_the_text_that_asks_for_a_code_and_its_answer_is_the_reply() {
    let (server, crm, wechat) = (Target::start().await, Target::start().await, WeChat::secure());
    let base = server.url().replace("/hook", "");
    let codes = format!("[targets.codes]\nprovider = \"wechat-server\"\nbase_url = \"{base}\"\ntoken = \"abc123\"\n");
    let relay = Relay::start(wechat.account() + &codes + &crm.config("crm", "")).await;
    server.script([Reaction::Answer(Reply::xml(
        "<xml><ToUserName>o1</ToUserName><FromUserName>gh</FromUserName><CreateTime>1</CreateTime>\
         <MsgType>text</MsgType><Content>123456</Content></xml>",
    ))]);
    let answer = relay.accept(&wechat, &text("o1", "验证码")).await;
    assert!(wechat.open_reply(answer.text()).contains("123456"), "{}", answer.text());
    relay.accept(&wechat, &text("o1", "hello")).await;
    crm.wait_for(1).await;
    let asked = server.deliveries();
    assert_eq!((asked.len(), asked[0].path.as_str()), (1, "/api/wechat"));
}
