"""Standard Webhooks and CloudEvents, checked by the official packages of both for Python and Node.

Two targets take what the relay signs with `[new, old]` as `json` and `cloudevents`; the FastAPI and Express programs of
docs/handlers take them too, one knowing the new secret, one the old, and reply.
"""
import base64
import os
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook, WebhookVerificationError

from rig import expect, expect_that
from stand import HANDLERS, HERE, Stand, Tap
from wechat import OPENID, Account, message, open_by_wechatpy, push


def secret():
    return "whsec_" + base64.b64encode(os.urandom(32)).decode()


class Webhooks:
    def __init__(self, binary):
        self.stand = Stand(binary)
        self.account = Account("shop", "secure", "/wx")
        self.new, self.old, self.other = secret(), secret(), secret()

    def start(self):
        self.judge = self.stand.process("official packages", ["node", str(HERE / "official.js")])
        fastapi = self.stand.program([sys.executable, str(HANDLERS / "fastapi_handler.py")], SECRET=self.old)
        express = self.stand.program(["node", str(HANDLERS / "express.js")], SECRET=self.new)
        self.stand.await_programs()
        self.taps = {"json": Tap("json"), "cloudevents": Tap("cloudevents")}
        self.programs = {"fastapi": Tap("FastAPI", fastapi), "express": Tap("Express", express)}
        targets = [("json", "json", self.taps["json"]), ("cloudevents", "cloudevents", self.taps["cloudevents"]),
                   ("fastapi", "json", self.programs["fastapi"]), ("express", "cloudevents", self.programs["express"])]
        text = f'[accounts.shop]\npath = "/wx"\napp_id = "{self.account.app_id}"\ntoken = "{self.account.token}"\nmode = "secure"\n'
        text += f'encoding_aes_key = "{self.account.key}"\n'
        for name in self.programs:
            text += f'[[accounts.shop.routes]]\nmatch = {{ content = "{name} *" }}\nto = ["{name}"]\nreply = "{name}"\n'
        text += '[[accounts.shop.routes]]\nmatch = { msg_type = "*" }\nto = ["json", "cloudevents", "fastapi", "express"]\n'
        for name, form, tap in targets:
            text += f'[targets.{name}]\nurl = "{tap.url}/wechat"\nformat = "{form}"\nsecret = ["{self.new}", "{self.old}"]\nretry = ["100ms"]\n'
        self.relay = self.stand.serve(text)
        self.clear = message("text", Content="你好 😀 <&>")
        request = push(self.account, self.clear)
        expect(self.relay.post("/wx", request).status, 200, "status")

    def checks(self):
        for form in ("json", "cloudevents"):
            for name in ("new", "old"):
                yield f"{form}: signed with both secrets, accepted by standardwebhooks of PyPI and npm that knows the {name} one", lambda f=form, n=name: self.signed(f, n)
            yield f"{form}: refused with another secret, another body, another id", lambda f=form: self.forged(f)
        yield "cloudevents: the SDKs of PyPI and npm read attributes and data", self.cloud_event
        for name, title in (("fastapi", "FastAPI"), ("express", "Express")):
            yield f"{title} of docs/handlers verifies, replies in time and drops a repeat", lambda n=name, t=title: self.replied(n, t)
            yield f"{title} of docs/handlers refuses what is not signed", lambda n=name: self.unsigned(n)

    def delivery(self, form):
        return self.taps[form].wait_for(lambda request: request.body)[0]

    def signed(self, form, name):
        delivery = self.delivery(form)
        expect(len(delivery.headers["webhook-signature"].split(" ")), 2, "signatures")
        expect(delivery.headers["webhook-id"], delivery.headers["wxrelay-event-id"], "webhook-id")
        known = getattr(self, name)
        read = Webhook(known).verify(delivery.body, delivery.headers)
        expect(read["id"], delivery.headers["webhook-id"], "id that the PyPI package reads")
        answer = self.judge.ask({"op": "verify", "secret": known, "headers": delivery.headers, "body": delivery.body.decode()})
        expect(answer.get("verified"), read, "what the npm package reads")

    def forged(self, form):
        delivery = self.delivery(form)
        id_of_another = delivery.headers | {"webhook-id": "evt_0000000000000000"}
        for what, known, headers, body in [
            ("another secret", self.other, delivery.headers, delivery.body),
            ("another body", self.new, delivery.headers, delivery.body + b" "),
            ("another id", self.new, id_of_another, delivery.body),
        ]:
            try:
                Webhook(known).verify(body, headers)
            except WebhookVerificationError:
                pass
            else:
                raise AssertionError(f"the PyPI package accepts {what}")
            answer = self.judge.ask({"op": "verify", "secret": known, "headers": headers, "body": body.decode()})
            expect_that("refused" in answer, f"the npm package accepts {what}: {answer}")

    def cloud_event(self):
        delivery = self.delivery("cloudevents")
        event = from_http_event(HTTPMessage(headers=delivery.headers, body=delivery.body))
        by_npm = self.judge.ask({"op": "event", "headers": delivery.headers, "body": delivery.body.decode()})
        found = (event.get_specversion(), event.get_id(), event.get_source(), event.get_type(), event.get_subject())
        expect(found, ("1.0", delivery.headers["wxrelay-event-id"], "/accounts/shop", "com.tencent.weixin.mp.text", OPENID), "PyPI: attributes")
        expect((by_npm["valid"], *(by_npm[name] for name in ("specversion", "id", "source", "type", "subject"))), (True, *found), "npm: attributes")
        for data in (event.get_data(), by_npm["data"]):
            expect((data["Content"], data["MsgType"]), ("你好 😀 <&>", "text"), "data")
            expect_that(f"<MsgId>{data['MsgId']}</MsgId>" in self.clear, f"MsgId {data['MsgId']}")
        expect(event.get_data(), by_npm["data"], "data that both read")

    def replied(self, name, title):
        said = f"{name} 你好 😀 <&>"
        clear = message("text", Content=said)
        answer = self.relay.post("/wx", push(self.account, clear))
        _, reply, _ = open_by_wechatpy(self.account, answer)
        expect((reply["ToUserName"], reply["Content"]), (OPENID, f"{title}: {said}"), "reply")
        tap = self.programs[name]
        taken = [request for request in tap.requests if request.status == 200][-1]
        status, _, body = tap.answer(Repeat(taken), taken.body)
        expect((status, body), (204, b""), "answer to a repeat")

    def unsigned(self, name):
        tap = self.programs[name]
        taken = next(request for request in tap.requests if request.body)
        headers = {key: value for key, value in taken.headers.items() if key != "webhook-signature"}
        expect(tap.answer(Repeat(taken, headers), taken.body)[0], 401, "status without a signature")
        expect(tap.answer(Repeat(taken), taken.body + b" ")[0], 401, "status of another body")

    def end(self):
        self.stand.end()


class Repeat:
    """A request that was sent before, for a tap to send again."""

    def __init__(self, request, headers=None):
        self.command, self.path = "POST", request.target
        # The length is that of the body which is sent.
        self.headers = {name: value for name, value in (headers or request.headers).items() if name != "content-length"}
