"""Express with express-xml-bodyparser as Authing: `authing-json` must be, byte for byte, what that parser makes of `raw`.

Every push goes to the stand-in twice, by the targets `login` (authing-json) and `bare` (raw).
"""
import json
from pathlib import Path

from rig import expect, expect_that
from wechat import GH_ID, Push, message, push

CASES = Path(__file__).resolve().parent.parent / "data" / "authing" / "cases.json"
EVENTS_PATH = "/connections/social/interop/pool/events"
SHAPES = {
    "SCAN": {"Event": "SCAN", "EventKey": "login_7", "Ticket": "gQE28DwAAAAA"},
    "unsubscribe with an empty EventKey": {"Event": "unsubscribe", "EventKey": ""},
    "inner blank runs": {"Event": "CLICK", "EventKey": "  a  b \t c \u3000\u00a0 d  "},
    "blank-only EventKey": {"Event": "CLICK", "EventKey": "   "},
    "control characters": {"Event": "VIEW", "EventKey": "http://example/\u0001\u0007\u001f?q=\"a\\b/c\""},
    "emoji": {"Event": "CLICK", "EventKey": "😀 你好 👨‍👩‍👧"},
}
INNER = {
    "nested SendPicsInfo": ("pic_weixin", "<SendPicsInfo><Count>2</Count>\n<PicList><item><PicMd5Sum><![CDATA[a]]></PicMd5Sum>\n</item>\n<item><PicMd5Sum><![CDATA[b]]></PicMd5Sum>\n</item>\n</PicList>\n</SendPicsInfo>"),
    "repeated List elements": ("subscribe_msg_popup_event", "<SubscribeMsgPopupEvent><List><TemplateId><![CDATA[x]]></TemplateId>\n</List>\n<List><TemplateId><![CDATA[y]]></TemplateId>\n</List>\n</SubscribeMsgPopupEvent>"),
    "entities and blanks": ("scancode_push", "<ScanCodeInfo><ScanResult>&lt;a&gt; &amp;&#65;  &quot;b&quot;</ScanResult>\n<Empty/>\n<Blank>  </Blank>\n</ScanCodeInfo>"),
}


def checks(harness):
    for account in harness.accounts:
        yield f"{account.mode}: authing-json is what express-xml-bodyparser makes of raw", lambda a=account: every_shape(harness, a)
    yield "plaintext: the golden cases that are pushes reach Authing as its own parser reads them", lambda: golden(harness)
    yield "secure: blanks and comments in the envelope change nothing", lambda: odd_envelopes(harness)
    for name, (account, vector) in harness.recorded.items():
        yield f"a push recorded from a real account reaches identity and handler ({name.removeprefix('recorded_')})", lambda a=account, v=vector: replayed(harness, a, v)


def deliver(harness, account, clear, request):
    """Pushes, and compares what the two targets got: to each other, and to what was sent."""
    sent = request.body.decode()
    mark = harness.authing.mark()
    expect(harness.send(account, clear, request).status, 200, "status")
    unread = [line for line in harness.authing.since(mark) if "error" in line]
    expect(unread, [], "pushes that the stand-in could not parse")
    raw = harness.authing.wait_for(lambda line: line.get("path") == "/bare" and line["raw"] == sent, "the bytes sent", since=mark)[0]
    event = raw["headers"]["wxrelay-event-id"]
    ours = lambda line: line.get("path") == EVENTS_PATH and line["headers"]["wxrelay-event-id"] == event
    made = harness.authing.wait_for(ours, f"authing-json of {event}", since=mark)[0]
    expect(made["raw"], raw["parsed"], "authing-json against the parser's own")
    expect((made["search"], made["headers"]["content-type"].split(";")[0]), (None, "application/json"), "query and type of authing-json")
    expect((raw["search"], raw["headers"]["content-type"].split(";")[0]), (request.query, "text/xml"), "query and type of raw")
    return made["raw"]


def every_shape(harness, account):
    pushes = [message("event", openid=f"oSHAPE{account.mode}", **elements) for elements in SHAPES.values()]
    pushes += [message("event", inner=inner, openid=f"oSHAPE{account.mode}", Event=event) for event, inner in INNER.values()]
    for clear in pushes:
        made = deliver(harness, account, clear, push(account, clear))
        names = list(json.loads(made)["xml"])
        expect_that(("encrypt" in names) == (account.mode != "plaintext"), f"names in {account.mode} mode: {names}")
        expect_that(account.mode != "secure" or names == ["tousername", "encrypt"], f"names in secure mode: {names}")
    return f"{len(pushes)} shapes"


def golden(harness):
    cases = [case for case in json.loads(CASES.read_text()) if "<MsgType>" in case["xml"] and "<Encrypt>" not in case["xml"]]
    expect_that(len(cases) > 30, f"only {len(cases)} cases are pushes")
    for case in cases:
        made = deliver(harness, harness.plaintext, case["xml"], push(harness.plaintext, case["xml"]))
        expect(made, case["json"], case["name"])
    return f"{len(cases)} cases"


def odd_envelopes(harness):
    for shape in (
        "<xml>{to}<Encrypt><![CDATA[{encrypt}]]></Encrypt></xml>",
        "<?xml version=\"1.0\"?>\r\n<xml>\r\n  {to}\r\n  <Encrypt>{encrypt}</Encrypt>\r\n</xml>\r\n",
        "<xml><Encrypt><![CDATA[{encrypt}]]></Encrypt><!-- odd -->{to}<AgentID></AgentID></xml>",
    ):
        clear = message("event", Event="SCAN", EventKey=f"shape {len(shape)}")
        request = push(harness.secure, clear)
        encrypt = request.body.decode().split("<Encrypt><![CDATA[")[1].split("]]>")[0]
        body = shape.format(to=f"<ToUserName><![CDATA[{GH_ID}]]></ToUserName>", encrypt=encrypt)
        deliver(harness, harness.secure, clear, Push(request.query, body.encode()))


def replayed(harness, account, vector):
    siblings = vector.get("clear_siblings_of_Encrypt") or {"ToUserName": own_id(vector)}
    body = "<xml>" + "".join(f"<{name}><![CDATA[{value}]]></{name}>\n" for name, value in siblings.items())
    body += f"<Encrypt><![CDATA[{vector['ciphertext']}]]></Encrypt>\n</xml>"
    request = Push(vector["query"], body.encode())
    backend = harness.backends[account.app_id]
    made = deliver(harness, account, vector["plaintext"], request)
    expect(json.loads(made)["xml"]["encrypt"], [vector["ciphertext"]], "Encrypt that reaches Authing")
    seen = backend.wait_for(lambda line: line.get("clear") == vector["plaintext"], "recorded push")[0]
    expect(seen["class"], "TextMessage", "what wechatpy makes of it")


def own_id(vector):
    return vector["plaintext"].split("<ToUserName><![CDATA[")[1].split("]]>")[0]
