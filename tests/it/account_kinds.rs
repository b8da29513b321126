//! Mini programs, shops and Channels (视频号) are accounts like any other: a table with their own AppID, token and key.

use serde_json::Value;

use crate::support::http::exchange;
use crate::support::relay::Relay;
use crate::support::target::Target;
use crate::support::wechat::{Mode, WeChat, now};

/// A push of one kind, and what a handler receives of it.
struct Kind {
    account: &'static str,
    app_id: &'static str,
    mode: Mode,
    clear: String,
    event: &'static str,
    /// A JSON pointer into `message`, and the text there.
    detail: (&'static str, &'static str),
}

#[tokio::test]
async fn pushes_of_mini_programs_channels_and_shops_reach_a_handler_through_accounts_of_their_own() {
    let (kinds, crm) = (kinds(), Target::start().await);
    let mut config = crm.config("crm", "format = \"json\"");
    for account in ["mini", "channels", "shop"] {
        let kind = kinds.iter().find(|kind| kind.account == account).expect("each account has a push");
        config += &wechat(kind).account_named(account, &path(account));
        config += &format!("[[accounts.{account}.routes]]\notherwise = true\nto = [\"crm\"]\n");
    }
    let relay = Relay::start(config).await;
    for (nth, kind) in kinds.iter().enumerate() {
        let request = wechat(kind).push(&kind.clear).request(&path(kind.account));
        let answer = exchange(&relay.push, &request).await;
        assert_eq!((answer.status, answer.text()), (200, "success"), "{}", kind.event);
        let told = crm.delivery(nth).await.json();
        for (key, expected) in [("account", kind.account), ("app_id", kind.app_id), ("event", kind.event)] {
            assert_eq!(told[key], expected, "{}: {key}", kind.event);
        }
        let detail = told["message"].pointer(kind.detail.0).and_then(Value::as_str);
        assert_eq!(detail, Some(kind.detail.1), "{}: {}", kind.event, kind.detail.0);
    }
    relay.audited("delivered", 4).await;
}

/// Pushes in JSON and in XML: the consoles of these accounts offer both.
fn kinds() -> Vec<Kind> {
    let json = |event: &str, rest: &str| {
        format!(
            "{{\"ToUserName\":\"gh_0d1e2f3a4b5c\",\"FromUserName\":\"oMini\",\"CreateTime\":{},\"MsgType\":\"event\",\
             \"Event\":\"{event}\",{rest}}}",
            now()
        )
    };
    let xml = |event: &str, rest: &str| {
        format!(
            "<xml><ToUserName><![CDATA[gh_0d1e2f3a4b5c]]></ToUserName>\n<FromUserName><![CDATA[oMini]]></FromUserName>\n\
             <CreateTime>{}</CreateTime>\n<MsgType><![CDATA[event]]></MsgType>\n<Event><![CDATA[{event}]]></Event>\n\
             {rest}</xml>",
            now()
        )
    };
    let session = "user_enter_tempsession";
    let (refund, order) = ("channels_ec_aftersale_update", "channels_ec_order_new");
    let mini = |clear, detail| Kind {
        account: "mini",
        app_id: "wx00000000000000a1",
        mode: Mode::Secure,
        clear,
        event: session,
        detail,
    };
    vec![
        mini(json(session, "\"SessionFrom\":\"order page\""), ("/SessionFrom", "order page")),
        mini(xml(session, "<SessionFrom><![CDATA[cart]]></SessionFrom>\n"), ("/SessionFrom", "cart")),
        Kind {
            account: "channels",
            app_id: "wx00000000000000a2",
            mode: Mode::Compatible,
            clear: xml(
                refund,
                "<finder_shop_aftersale_status_update><status><![CDATA[MERCHANT_PROCESSING]]></status>\
                 <after_sale_order_id>2000000046250008</after_sale_order_id></finder_shop_aftersale_status_update>\n",
            ),
            event: refund,
            detail: ("/finder_shop_aftersale_status_update/after_sale_order_id", "2000000046250008"),
        },
        Kind {
            account: "shop",
            app_id: "wx00000000000000a3",
            mode: Mode::Secure,
            // A number above 2^53: as a JSON number it would lose its last digits in many handlers.
            clear: json(order, "\"order_info\":{\"order_id\":3705115058471208928}"),
            event: order,
            detail: ("/order_info/order_id", "3705115058471208928"),
        },
    ]
}

fn wechat(kind: &Kind) -> WeChat {
    WeChat { app_id: kind.app_id.to_owned(), token: format!("{}token", kind.account), ..WeChat::new(kind.mode) }
}

fn path(account: &str) -> String {
    format!("/wechat/{account}")
}
