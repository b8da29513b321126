"""Unmodified programs on WeRoBot, wechatpy, co-wechat and wechat behind `format = "wechat"`: the files of docs/handlers.

Each believes that it talks to WeChat. One account's events go to all of them at once, in three modes; three accounts
share them. The route that matches names the one that replies; the sender, wechatpy, opens the reply. A tap before each
program sees what it is sent and what it answers.
"""
import json
import re
import sys
import time
from dataclasses import dataclass

import xmltodict

from rig import expect, expect_that
from stand import HANDLERS, Stand, Tap
from wechat import GH_ID, OPENID, Account, message, open_by_wechatpy, push, signature

MODES = ("plaintext", "compatible", "secure")
# Name, file, path, and what its text replies begin with.
SDKS = {
    "wechatpy": ([sys.executable, str(HANDLERS / "wechatpy_handler.py")], "/wx", "wechatpy"),
    "werobot": ([sys.executable, str(HANDLERS / "werobot_handler.py")], "/", "WeRoBot"),
    "co-wechat": (["node", str(HANDLERS / "co-wechat.js")], "/", "co-wechat"),
    "wechat": (["node", str(HANDLERS / "wechat.js")], "/wx", "wechat"),
}
SEALED_ORDER = ["signature", "timestamp", "nonce", "openid", "encrypt_type", "msg_signature"]
CLEAR_ORDER = SEALED_ORDER[:4]


@dataclass
class Backend:
    """One program as one target sees it."""

    sdk: str
    mode: str
    account: Account
    tap: Tap

    @property
    def name(self):
        return f"{self.sdk}_{self.mode}"

    @property
    def title(self):
        return SDKS[self.sdk][2]

    def clear(self, request):
        """The clear text of a push, checked and opened by wechatpy."""
        query = request.query()
        signed = signature(self.account.token, query["timestamp"], query["nonce"])
        expect(query["signature"], signed, f"{self.name}: signature by the target's own token")
        if self.mode == "plaintext":
            return request.body.decode()
        opened = self.account.crypto().decrypt_message(request.body, query["msg_signature"], query["timestamp"], query["nonce"])
        return opened

    def target(self):
        path, own = SDKS[self.sdk][1], self.account
        lines = [f"[targets.{self.name}]", f'url = "{self.tap.url}{path}"', 'format = "wechat"', f'mode = "{self.mode}"',
                 f'token = "{own.token}"', f'app_id = "{own.app_id}"', 'retry = ["1200ms", "1200ms"]']
        lines += [f'encoding_aes_key = "{own.key}"'] if self.mode != "plaintext" else []
        return "\n".join(lines) + "\n"


class Sdks:
    def __init__(self, binary):
        self.stand = Stand(binary)
        self.accounts = [Account(mode, mode, f"/wx/{mode}", f"wx{index:016x}") for index, mode in enumerate(MODES)]
        self.sent = 0

    def start(self):
        self.backends = []
        for sdk, (command, _, _) in SDKS.items():
            own = Account(sdk, "secure", "/", "wxbacdbacdbacdbacd")
            plain = self.stand.program(command, TOKEN=own.token, APP_ID=own.app_id)
            sealed = self.stand.program(command, TOKEN=own.token, APP_ID=own.app_id, ENCODING_AES_KEY=own.key)
            for mode in MODES:
                tap = Tap(f"{sdk}_{mode}", plain if mode == "plaintext" else sealed)
                self.backends.append(Backend(sdk, mode, own, tap))
        self.stand.await_programs()
        self.config = self._config()
        self.relay = self.stand.serve(self.config)

    def _config(self):
        names = json.dumps([backend.name for backend in self.backends])
        text = "".join(backend.target() for backend in self.backends)
        for account in self.accounts:
            text += f'[accounts.{account.name}]\npath = "{account.path}"\napp_id = "{account.app_id}"\ntoken = "{account.token}"\n'
            text += f'mode = "{account.mode}"\n' + (f'encoding_aes_key = "{account.key}"\n' if account.mode != "plaintext" else "")
            for backend in self.backends:
                text += f'[[accounts.{account.name}.routes]]\nmatch = {{ content = "{backend.name} *" }}\nto = {names}\nreply = "{backend.name}"\n'
            text += f"[[accounts.{account.name}.routes]]\notherwise = true\nto = {names}\n"
        return text

    def send(self, account, clear):
        answer = self.relay.post(account.path, push(account, clear))
        expect(answer.status, 200, "status")
        self.sent += 1
        return answer

    def checks(self):
        yield "check --online: every SDK accepts the verification", self.verified
        yield "check --online: every SDK refuses that of another token, and check says so", self.refused
        for backend in self.backends:
            yield f"{backend.sdk}, {backend.mode}: text in, reply out, for accounts of all three modes", lambda b=backend: self.answered(b)
        yield "a failed attempt is sent again: new nonce, timestamp and encryption, the same text and MsgId", self.tried_again
        yield "events that the programs do not answer are accepted by all of them", self.no_answer
        yield "the requests to the programs have WeChat's order, types and headers", self.as_wechat_sends
        yield "the SDKs' own quirks were among the decrypted replies: times in milliseconds, nonces of letters", self.quirks
        yield "the audit: every event went to every program once", self.audited

    def verified(self):
        code, told, error = self.stand.run("check", "--online")
        expect_that(code == 0, f"exit code {code}: {told}{error}")
        for backend in self.backends:
            expect_that(f"target {backend.name}: ok, accepts WeChat's verification" in told, f"{backend.name} is not ok: {told}")

    def refused(self):
        other = self.stand.path / "other.toml"
        text = self.stand.config.read_text()
        for backend in self.backends:
            text = text.replace(backend.account.token, "anothertoken")
        other.write_text(text)
        code, told, _ = self.stand.run("check", "--online", "--json", config=other)
        expect(code, 1, "exit code")
        lines = json.loads(told)["online"]
        for line in lines:
            expect_that(not line["ok"] and re.search("answered 40[13]", line["problem"]), f"not refused: {line}")
        return f"{len(lines)} targets"

    def answered(self, backend):
        for account in self.accounts:
            said = f"{backend.name} 你好 😀 <&> \"quoted\" 'single' {account.mode}"
            answer = self.send(account, message("text", Content=said))
            if account.mode == "plaintext":
                expect(answer.headers["content-type"], "text/xml; charset=utf-8", "Content-Type")
                reply = xmltodict.parse(answer.body)["xml"]
            else:
                _, reply, _ = open_by_wechatpy(account, answer)
            found = (reply["ToUserName"], reply["FromUserName"], reply["MsgType"], reply["Content"])
            expect(found, (OPENID, GH_ID, "text", f"{backend.title}: {said}"), f"reply, account in {account.mode} mode")
            expect_that(abs(int(reply["CreateTime"]) - time.time()) < 60, f"CreateTime {reply['CreateTime']} is not now, in seconds")

    def tried_again(self):
        account = self.accounts[2]
        for backend in self.backends:
            backend.tap.failing = 1
        clear = message("text", Content="nobody replies to this")
        expect(self.send(account, clear).body, b"success", "answer")
        for backend in self.backends:
            holds = lambda request, b=backend: request.headers.get("wxrelay-attempt") and self._is(b, request, clear)
            first, second = backend.tap.wait_for(holds, 2)
            expect((first.status, second.status), (503, 200), f"{backend.name}: statuses")
            expect([first.headers["wxrelay-attempt"], second.headers["wxrelay-attempt"]], ["1", "2"], "attempts")
            one, two = first.query(), second.query()
            expect_that(int(two["timestamp"]) > int(one["timestamp"]), f"{backend.name}: the timestamp stays {one['timestamp']}")
            for name in ["nonce", "signature"] + (["msg_signature"] if backend.mode != "plaintext" else []):
                expect_that(one[name] != two[name], f"{backend.name}: {name} stays")
            expect_that((first.body != second.body) == (backend.mode != "plaintext"), f"{backend.name}: bodies")

    def _is(self, backend, request, clear):
        return request.body and backend.clear(request) == clear

    def no_answer(self):
        for account in self.accounts:
            for clear in [message("event", Event="subscribe", EventKey="qrscene_7", Ticket="T"), message("event", Event="CLICK", EventKey="k"),
                          message("image", PicUrl="http://example/p", MediaId="M")]:
                expect(self.send(account, clear).body, b"success", "answer")
                for backend in self.backends:
                    taken = backend.tap.wait_for(lambda request, b=backend, c=clear: self._is(b, request, c))[0]
                    expect(taken.status, 200, f"{backend.name}: status")

    def as_wechat_sends(self):
        seen = 0
        for backend in self.backends:
            for request in [request for request in backend.tap.requests if request.body]:
                seen += 1
                query = request.query()
                expect(list(query), CLEAR_ORDER if backend.mode == "plaintext" else SEALED_ORDER, f"{backend.name}: query")
                expect((query["openid"], query.get("encrypt_type", "aes")), (OPENID, "aes"), f"{backend.name}: openid, encrypt_type")
                expect_that(re.fullmatch(r"\d{10}", query["timestamp"]) and re.fullmatch(r"\d{8,10}", query["nonce"]), f"{backend.name}: {query}")
                headers = request.headers
                expect((request.version, headers["content-length"], headers.get("transfer-encoding")),
                       ("HTTP/1.1", str(len(request.body)), None), f"{backend.name}: framing")
                expect(headers["content-type"].split(";")[0], "text/xml", f"{backend.name}: type")
                names = re.findall(r"<(\w+)>", request.body.decode())
                inner = re.findall(r"<(\w+)>", backend.clear(request))
                outer = {"plaintext": inner, "compatible": inner + ["Encrypt"], "secure": ["xml", "ToUserName", "Encrypt"]}
                expect(names, outer[backend.mode], f"{backend.name}: elements")
                expect_that("<Encrypt><![CDATA[" in request.body.decode() or backend.mode == "plaintext", f"{backend.name}: no CDATA")
        return f"{seen} pushes"

    def quirks(self):
        def answers(sdk, mode):
            backend = next(backend for backend in self.backends if (backend.sdk, backend.mode) == (sdk, mode))
            return b"".join(request.answer for request in backend.tap.requests).decode()
        for sdk in ("co-wechat", "wechat"):
            for mode in ("compatible", "secure"):
                expect_that(re.search(r"<TimeStamp>\d{13}</TimeStamp>", answers(sdk, mode)), f"{sdk}: no TimeStamp in milliseconds any more")
            expect_that(re.search(r"<CreateTime>\d{13}</CreateTime>", answers(sdk, "plaintext")), f"{sdk}: no CreateTime in milliseconds any more")
        expect_that(re.search(r"<Nonce><!\[CDATA\[[A-Za-z0-9]*[A-Za-z][A-Za-z0-9]*\]\]>", answers("werobot", "secure")), "WeRoBot: no nonce with letters any more")

    def audited(self):
        deadline = time.monotonic() + 15
        while (found := self.stand.audit())["pending"] and time.monotonic() < deadline:
            time.sleep(0.1)
        expect((found["events"], found["delivered"], found["unaccounted"]), (self.sent, self.sent * len(self.backends), 0), "audit")
        for backend in self.backends:
            ids = [request.headers["wxrelay-event-id"] for request in backend.tap.requests if request.body and request.status == 200]
            expect((len(ids), len(set(ids))), (self.sent, self.sent), f"{backend.name}: events")
        return f"{self.sent} events, {found['delivered']} deliveries"

    def end(self):
        self.stand.end()
