"""wechatpy as the handler behind `format = "wechat"`: it must not be able to distinguish the relay from WeChat."""
import time

import xmltodict

from rig import expect, expect_that
from wechat import OPENID, message, open_by_wechatpy

INNER = {
    "ScanCodeInfo": "<ScanCodeInfo><ScanType><![CDATA[qrcode]]></ScanType>\n<ScanResult><![CDATA[2]]></ScanResult>\n</ScanCodeInfo>",
    "SendPicsInfo": "<SendPicsInfo><Count>1</Count>\n<PicList><item><PicMd5Sum><![CDATA[5a75aaca]]></PicMd5Sum>\n</item>\n</PicList>\n</SendPicsInfo>",
}
# wechatpy's class for each kind of push.
KINDS = [
    ("ImageMessage", "image", {"PicUrl": "http://example/p", "MediaId": "M"}, ""),
    ("VoiceMessage", "voice", {"MediaId": "M", "Format": "amr", "Recognition": "你好"}, ""),
    ("VideoMessage", "video", {"MediaId": "M", "ThumbMediaId": "T"}, ""),
    ("ShortVideoMessage", "shortvideo", {"MediaId": "M", "ThumbMediaId": "T"}, ""),
    ("LocationMessage", "location", {"Location_X": "23.134521", "Location_Y": "113.358803", "Scale": 20, "Label": "位置"}, ""),
    ("LinkMessage", "link", {"Title": "t", "Description": "d", "Url": "http://example/?a=1&b=2"}, ""),
    ("SubscribeScanEvent", "event", {"Event": "subscribe", "EventKey": "qrscene_7", "Ticket": "T"}, ""),
    ("UnsubscribeEvent", "event", {"Event": "unsubscribe", "EventKey": ""}, ""),
    ("ScanEvent", "event", {"Event": "SCAN", "EventKey": "7", "Ticket": "T"}, ""),
    ("LocationEvent", "event", {"Event": "LOCATION", "Latitude": "23.1", "Longitude": "113.3", "Precision": "119.3"}, ""),
    ("ClickEvent", "event", {"Event": "CLICK", "EventKey": "MENU_1"}, ""),
    ("ViewEvent", "event", {"Event": "VIEW", "EventKey": "http://example/?a=1&b=2"}, ""),
    ("ScanCodeWaitMsgEvent", "event", {"Event": "scancode_waitmsg", "EventKey": "6"}, INNER["ScanCodeInfo"]),
    ("PicWeChatEvent", "event", {"Event": "pic_weixin", "EventKey": "6"}, INNER["SendPicsInfo"]),
    ("TemplateSendJobFinishEvent", "event", {"Event": "TEMPLATESENDJOBFINISH", "MsgID": 200163840, "Status": "success"}, ""),
    ("UnknownMessage", "new_kind_of_2027", {"Something": "x"}, ""),
]


def checks(harness):
    for account in harness.accounts:
        yield f"{account.mode}: wechatpy's handler answers, the sender reads its reply", lambda a=account: answered(harness, a)
    yield "a news reply and an image reply of wechatpy pass through", lambda: rich_replies(harness)
    yield "no reply of wechatpy is `success` for WeChat", lambda: no_reply(harness)
    yield "WeChat's retry, encrypted again, gets the same reply and reaches the handler once", lambda: retried(harness)
    for account in harness.accounts:
        yield f"{account.mode}: wechatpy parses every kind of message that the relay passes on", lambda a=account: every_kind(harness, a)


def reply_of(harness, account, clear, **options):
    """The clear reply to the push, whatever the mode; and its elements."""
    answer = harness.send(account, clear, **options)
    if account.mode != "plaintext":
        return open_by_wechatpy(account, answer)[1]
    expect(answer.headers["content-type"], "text/xml; charset=utf-8", "Content-Type")
    return xmltodict.parse(answer.body)["xml"]


def answered(harness, account):
    said = "你好 😀 <&> \"quoted\" 'single' tail"
    clear = message("text", Content=f"echo 0 {said}")
    mark = harness.backend.mark()
    reply = reply_of(harness, account, clear)
    expect((reply["ToUserName"], reply["MsgType"], reply["Content"]), (OPENID, "text", said), "reply")
    seen = harness.backend.wait_for(lambda line: line.get("clear") == clear, "push with the same clear text", since=mark)[0]
    query = seen["query"]
    expect((query["openid"], query["encrypt_type"]), (OPENID, "aes"), "openid and encrypt_type")
    expect_that(abs(int(query["timestamp"]) - time.time()) < 60, "the timestamp is not now, in seconds")
    expect_that(seen["headers"]["content-type"].startswith("text/xml"), f"Content-Type {seen['headers']['content-type']}")
    expect_that(0 < int(seen["headers"]["wxrelay-deadline-ms"]) <= 5000, "wxrelay-deadline-ms is not within WeChat's 5 s")
    expect_that("<Content>" not in seen["outer"], "the encrypted push has clear elements")


def rich_replies(harness):
    news = reply_of(harness, harness.secure, message("text", Content="news"))
    expect((news["MsgType"], news["ArticleCount"]), ("news", "1"), "news")
    article = {"Title": "标题 <1>", "Description": "a & b", "PicUrl": "http://img.example/1", "Url": "http://example/?a=1&b=2"}
    expect(dict(news["Articles"]["item"]), article, "article")
    image = reply_of(harness, harness.secure, message("text", Content="image"))
    expect((image["MsgType"], image["Image"]["MediaId"]), ("image", "MEDIA_1"), "image")


def no_reply(harness):
    for account in harness.accounts:
        answer = harness.send(account, message("text", Content="be quiet"))
        expect((answer.status, answer.body), (200, b"success"), f"answer, {account.mode}")
        expect_that(answer.headers["content-type"].startswith("text/plain"), "`success` is not text/plain")


def retried(harness):
    for account in harness.accounts:
        clear = message("text", Content="echo 1 once")
        mark = harness.backend.mark()
        first = reply_of(harness, account, clear)
        second = reply_of(harness, account, clear)
        expect(dict(second), dict(first), f"reply to the retry, {account.mode}")
        seen = [line for line in harness.backend.since(mark) if line.get("clear") == clear]
        expect(len(seen), 1, f"times the handler saw it, {account.mode}")


def every_kind(harness, account):
    for name, msg_type, elements, inner in KINDS:
        clear = message(msg_type, inner=inner, openid=f"oKIND{account.mode}", **elements)
        mark = harness.backend.mark()
        expect(harness.send(account, clear).status, 200, name)
        seen = harness.backend.wait_for(lambda line: "error" in line or line.get("clear") == clear, name, since=mark)[0]
        expect((seen.get("error"), seen.get("class")), (None, name), f"class in wechatpy, {account.mode}")
        expect(seen["source"], f"oKIND{account.mode}", "sender")
    return f"{len(KINDS)} kinds"
