"""Identity providers that the operator runs, as stand-ins that answer as their sources say: errors in a 200 included.

Casdoor: controllers/auth.go (HandleOfficialAccountEvent) and idp/wechat.go. wechat-server: controller/wechat.go and
common/wechat-message.go of songquanpeng/wechat-server.
"""
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import xmltodict

from rig import expect, expect_that
from stand import Stand, Tap
from wechat import GH_ID, OPENID, Account, message, open_by_wechatpy, push, signature

PROVIDER = "admin/provider_wechat"
CASDOOR_TOKEN, SERVER_TOKEN = "casdoorToken123", "serverToken456"


class Program(BaseHTTPRequestHandler):
    """A provider; `news` is notified of every push."""

    protocol_version = "HTTP/1.1"

    @classmethod
    def serve(cls):
        cls.news, cls.answers = threading.Condition(), []
        cls.server = ThreadingHTTPServer(("127.0.0.1", 0), cls)
        cls.server.daemon_threads = True
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()
        cls.url = f"http://127.0.0.1:{cls.server.server_address[1]}"

    @classmethod
    def end(cls):
        cls.server.shutdown()
        cls.server.server_close()

    @classmethod
    def wait_for(cls, predicate, what):
        with cls.news:
            expect_that(cls.news.wait_for(predicate, 20), f"{what}; answers so far: {cls.answers[-3:]}")

    def do_GET(self):
        self.reply(*self.verified({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        with self.news:
            status, answer = self.pushed(query, xmltodict.parse(body)["xml"])
            self.answers.append((urlsplit(self.path).path, answer))
            self.news.notify_all()
        self.reply(status, answer)

    def reply(self, status, answer):
        answer = answer.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Standard output and error are for the runner."""


class Casdoor(Program):
    provider, scanned = None, {}

    def verified(self, query):
        return 200, str(int(query["echostr"]))

    def pushed(self, query, data):
        error = lambda text: (200, json.dumps({"status": "error", "msg": text, "data": None}))
        if data.get("Event", "").upper() not in ("SCAN", "SUBSCRIBE"):
            return 200, ""
        if not data.get("Ticket"):
            return error("empty ticket")
        if data["EventKey"] != Casdoor.provider:
            return error(f"The provider: {data['EventKey']} does not exist")
        if signature(CASDOOR_TOKEN, query["timestamp"], query["nonce"]) != query["signature"]:
            return error("invalid signature")
        self.scanned[data["Ticket"]] = data["FromUserName"]
        return 200, ""


class WechatServer(Program):
    codes = {}

    def verified(self, query):
        given = signature(SERVER_TOKEN, query["timestamp"], query["nonce"])
        return (200, query["echostr"]) if given == query["signature"] else (403, "")

    def pushed(self, query, data):
        if urlsplit(self.path).path != "/api/wechat":
            return 200, "<!doctype html><title>wechat-server</title>"
        if data.get("Content") != "验证码":
            return 200, ""
        code = f"{random.randrange(10**6):06}"
        self.codes[code] = data["FromUserName"]
        return 200, (f"<xml><ToUserName>{data['FromUserName']}</ToUserName><FromUserName>{data['ToUserName']}</FromUserName>"
                     f"<CreateTime>1795161600</CreateTime><MsgType>text</MsgType><Content>{code}</Content></xml>")


class Providers:
    def __init__(self, binary):
        self.stand = Stand(binary)
        self.account = Account("shop", "secure", "/wx")
        self.ends = []

    def start(self):
        self.crm = Tap("crm")
        for program in (Casdoor, WechatServer):
            program.serve()
            self.ends.append(program.end)
        account = self.account
        self.text = (
            f'[accounts.shop]\npath = "/wx"\napp_id = "{account.app_id}"\ntoken = "{account.token}"\nencoding_aes_key = "{account.key}"\n'
            f'[targets.login]\nprovider = "casdoor"\nbase_url = "{Casdoor.url}/"\nprovider_id = "{PROVIDER}"\ntoken = "{CASDOOR_TOKEN}"\n'
            f'[targets.codes]\nprovider = "wechat-server"\nbase_url = "{WechatServer.url}"\ntoken = "{SERVER_TOKEN}"\n'
            f'[targets.crm]\nurl = "{self.crm.url}/wx"\nformat = "json"\n'
        )
        self.relay = self.stand.serve(self.text)

    def checks(self):
        yield "both accept WeChat's verification, signed with their own token", self.verification
        yield "Casdoor: an error with status 200 is retried until it takes the scan", self.retried
        yield "Casdoor: a follow comes with the bare scene, and logs in", self.followed
        yield "Casdoor: scans of other scenes go to the handlers alone", self.other_scenes
        yield "wechat-server: 验证码 gets six digits as the reply, in secure mode", self.code
        yield "wechat-server: a page of the web interface is no success", self.page
        yield "the audit counts everything as delivered", self.audited

    def push(self, **elements):
        kind = "event" if "Event" in elements else "text"
        return self.relay.post("/wx", push(self.account, message(kind, **elements)))

    def verification(self):
        code, out, error = self.stand.run("check", "--online")
        expect_that(code == 0, f"{out}{error}")

    def retried(self):
        expect(self.push(Event="SCAN", EventKey=PROVIDER, Ticket="ticket-1").status, 200, "status")
        failed = lambda: [answer for _, answer in Casdoor.answers if "does not exist" in answer]
        Casdoor.wait_for(lambda: len(failed()) >= 2, "a second try after the error in a 200")
        Casdoor.provider = PROVIDER
        Casdoor.wait_for(lambda: Casdoor.scanned.get("ticket-1") == OPENID, "the scan is taken")
        _, listed, _ = self.stand.run("events", "ls", "--json")
        event = json.loads(listed.splitlines()[0])
        _, shown, _ = self.stand.run("events", "show", event.get("id") or event["events"][0]["id"])
        expect_that("answered 200 with an error in the body" in shown, shown)

    def followed(self):
        self.push(Event="subscribe", EventKey=f"qrscene_{PROVIDER}", Ticket="ticket-2")
        Casdoor.wait_for(lambda: Casdoor.scanned.get("ticket-2") == OPENID, "the follow is taken")

    def other_scenes(self):
        before = len(Casdoor.answers)
        self.push(Event="SCAN", EventKey="spring", Ticket="ticket-3")
        self.push(Event="subscribe", EventKey="")
        self.crm.wait_for(lambda request: b"spring" in request.body)
        self.crm.wait_for(lambda request: b"subscribe" in request.body)
        expect(len(Casdoor.answers), before, "pushes to Casdoor")

    def code(self):
        _, reply, _ = open_by_wechatpy(self.account, self.push(Content="验证码"))
        expect((reply["ToUserName"], reply["FromUserName"]), (OPENID, GH_ID), "who replies to whom")
        expect(WechatServer.codes.get(reply["Content"]), OPENID, "whose code it is")
        self.push(Content="hello")
        self.crm.wait_for(lambda request: b"hello" in request.body)
        expect(len(WechatServer.answers), 1, "texts that wechat-server got")

    def page(self):
        other = Stand(self.stand.binary)
        self.ends.append(other.end)
        relay = other.serve(self.text.replace(f'"{WechatServer.url}"', f'"{WechatServer.url}/panel"'))
        relay.post("/wx", push(self.account, message("text", Content="验证码")))
        tries = lambda: [path for path, _ in WechatServer.answers if path == "/panel/api/wechat"]
        WechatServer.wait_for(lambda: len(tries()) >= 2, "a page instead of an answer is retried")

    def audited(self):
        found = self.stand.audit()
        expect((found["pending"], found["dead"], found["unaccounted"]), (0, 0, 0), "pending, dead, unaccounted")

    def end(self):
        for end in reversed(self.ends):
            end()
        self.ends.clear()
        self.stand.end()
