"""The relay under test between its peers: its accounts and targets, start and stop."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rig import Process, expect, expect_that
from wechat import Account, Relay, push

HERE = Path(__file__).resolve().parent
RECORDED = HERE.parent / "data" / "vectors.json"
WELCOME = "Welcome 你好 😀 <b>&\"' ]]> end"

# Users whose events also reach the handler; they must not send what expat cannot read (control characters).
TALKERS = ["oTALK*", "oKIND*", "oFIXED*", "olPjZjsXuQPJoV0HlruZkNzKc91E", "oIDrpjpQ8j8mBuQ8nM26HWzNEZgg"]

ROUTES = """
[[accounts.{name}.routes]]
match = {{ event = "subscribe", from = "oFIXED*" }}
to = ["login"]
reply = {{ text = {welcome} }}

[[accounts.{name}.routes]]
match = {{ from = {talkers} }}
to = [{backend}]
reply = {backend}

[[accounts.{name}.routes]]
match = {{ msg_type = "*" }}
to = ["login", "bare"]
"""


def recorded(name):
    vectors = json.loads(RECORDED.read_text())["vectors"]
    return next(vector for vector in vectors if vector["name"] == name)


class Harness:
    def __init__(self, binary):
        self.binary = binary
        self.folder = tempfile.TemporaryDirectory(prefix="wxrelay-interop-")
        self.config = Path(self.folder.name) / "config.toml"
        self.processes = []
        self.accepted = {}  # (account, clear text) -> pushes answered 200
        self.secure = Account("secure", "secure", "/wx/secure")
        self.compatible = Account("compatible", "compatible", "/wx/compatible")
        self.plaintext = Account("plaintext", "plaintext", "/wx/plaintext")
        self.accounts = [self.secure, self.compatible, self.plaintext]
        # The handler's own credentials: only the AppID is the account's.
        self.backend_account = Account("backend", "secure", "/wx")
        self.recorded = {}
        for name, vector, mode in [("recorded_secure", "fangbei-secure-push-xml", "secure"),
                                   ("recorded_compatible", "senparc-compat-push-xml", "compatible")]:
            found = recorded(vector)
            account = Account(name, mode, f"/wx/{name}", found["receive_id"], found["token"], found["encoding_aes_key"])
            self.recorded[name] = (account, found)

    def start(self):
        self.crypto = self._add("wechat-crypto", ["node", str(HERE / "crypto.js")])
        self.authing = self._add("express-xml-bodyparser", ["node", str(HERE / "authing.js")])
        peer = self.backend_account
        self.backends = {}
        for app_id in {account.app_id for account in self._every_account()}:
            command = [sys.executable, str(HERE / "handler.py"), "--token", peer.token, "--key", peer.key, "--app-id", app_id]
            self.backends[app_id] = self._add("wechatpy handler", command)
        self.backend = self.backends[self.secure.app_id]
        self.config.write_text(self._config())
        self.relay_process = self._add("wxrelay", [str(self.binary), "serve", "-c", str(self.config)], stream="stderr")
        listening = lambda line: line.get("message") == "listening" and line.get("listener") == "push"
        self.relay = Relay(self.relay_process.wait_for(listening, "address of the push listener")[0]["address"])
        self.relay_process.wait_for(lambda line: line.get("message") == "ready", "`ready`")

    def end(self):
        for process in reversed(self.processes):
            process.end()
        self.folder.cleanup()

    def send(self, account, clear, request=None, **options):
        """Pushes `clear`; a 200 is recorded for the last check, the audit."""
        answer = self.relay.post(account.path, request or push(account, clear, **options))
        if answer.status == 200:
            key = (account.name, clear)
            self.accepted[key] = self.accepted.get(key, 0) + 1
        return answer

    def due(self):
        """How many deliveries the accepted pushes are: one for each target that the routes name."""
        sender = lambda clear: clear.split("<FromUserName><![CDATA[")[1]
        talks = lambda clear: any(sender(clear).startswith(talker.rstrip("*")) for talker in TALKERS)
        return sum(3 if talks(clear) else 2 for _, clear in self.accepted)

    def seal_by_wechat_crypto(self, account, clear, timestamp, nonce):
        request = {"op": "seal", "token": account.token, "key": account.key, "id": account.app_id}
        sealed = self.crypto.ask(request | {"text": clear, "timestamp": timestamp, "nonce": nonce})
        return sealed["encrypt"], sealed["signature"]

    def open_by_wechat_crypto(self, account, sealed):
        """The clear text in the elements of an encrypted reply, by wechat-crypto."""
        request = {"op": "open", "token": account.token, "key": account.key, "id": account.app_id, "encrypt": sealed["Encrypt"]}
        opened = self.crypto.ask(request | {"timestamp": sealed["TimeStamp"], "nonce": sealed["Nonce"]})
        expect(opened["signature"], sealed["MsgSignature"], "wechat-crypto's signature of the reply")
        expect(opened["id"], account.app_id, "AppID that wechat-crypto finds in the reply")
        return opened["message"]

    def audit(self):
        run = subprocess.run([str(self.binary), "audit", "-c", str(self.config), "--json"], capture_output=True, text=True, timeout=30)
        expect_that(run.returncode == 0, f"audit ended with {run.returncode}: {run.stdout}{run.stderr}")
        return json.loads(run.stdout)

    def _add(self, name, command, stream="stdout"):
        process = Process(name, command, stream)
        self.processes.append(process)
        return process

    def _every_account(self):
        return self.accounts + [account for account, _ in self.recorded.values()]

    def _config(self):
        quoted = json.dumps  # a JSON string is a TOML basic string
        authing = f"http://127.0.0.1:{self.authing.port()}"
        lines = [
            "[server]", 'listen = ["127.0.0.1:0"]',
            "[admin]", 'listen = "127.0.0.1:0"',
            "[queue]", 'type = "embedded"', f"path = {quoted(str(Path(self.folder.name) / 'store'))}",
            "[targets.login]", 'role = "identity"', 'provider = "authing"', 'identifier = "interop"', 'user_pool_id = "pool"',
            f"base_url = {quoted(authing)}",
            "[targets.bare]", 'role = "identity"', f"url = {quoted(authing + '/bare')}",
        ]
        for app_id, backend in self.backends.items():
            lines += [f"[targets.{self._backend_name(app_id)}]", f'url = "http://127.0.0.1:{backend.port()}/wx"', 'format = "wechat"',
                      'mode = "secure"', f"token = {quoted(self.backend_account.token)}",
                      f"encoding_aes_key = {quoted(self.backend_account.key)}"]
        text = "\n".join(lines) + "\n"
        for account in self._every_account():
            text += f'\n[accounts.{account.name}]\npath = "{account.path}"\napp_id = "{account.app_id}"\n'
            text += f'token = "{account.token}"\nmode = "{account.mode}"\n'
            text += f'encoding_aes_key = "{account.key}"\n' if account.mode != "plaintext" else ""
            text += 'max_skew = "off"\n' if account.name in self.recorded else ""
            backend = quoted(self._backend_name(account.app_id))
            welcome = quoted(WELCOME, ensure_ascii=False)
            text += ROUTES.format(name=account.name, welcome=welcome, talkers=quoted(TALKERS), backend=backend)
        return text

    def _backend_name(self, app_id):
        return f"backend_{app_id}"
