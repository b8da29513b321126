"""Every push of tests/data/pushes through a relay of its own: encrypted by wechatpy, encrypted again by the relay, decrypted by wechatpy and wechat-crypto.

Three accounts, one per mode, push the whole corpus; three targets take it as `wechat`, each with token, key and mode of its own.
"""
import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from wechatpy.utils import check_signature

import corpus
from rig import WAIT, Process, expect, expect_that
from wechat import Account, Push, Relay, push, seal_by_wechatpy

MODES = ["plaintext", "compatible", "secure"]


class Receiver:
    """An HTTP target that records its requests."""

    def __init__(self, mode):
        self.account = Account(f"as_{mode}", mode, "/wx")
        self.got = []
        self.arrived = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with receiver.arrived:
                    receiver.got.append((self.headers["wxrelay-account"], self.path.partition("?")[2], body.decode()))
                    receiver.arrived.notify_all()
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                """Standard error is for the runner."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait_for(self, count):
        with self.arrived:
            expect_that(self.arrived.wait_for(lambda: len(self.got) >= count, WAIT), f"{len(self.got)} deliveries, not {count}")
            return list(self.got)


class Remade:
    def __init__(self, binary):
        self.binary = binary
        self.clear = {path.name: path.read_bytes().decode() for path in corpus.pushes()}
        # An AppID each: the same text for one AppID is the same push.
        self.accounts = [Account(mode, mode, f"/wx/{mode}", f"wx{at:016x}") for at, mode in enumerate(MODES)]

    def checks(self):
        yield "the corpus's expectations equal the output of corpus.py and express-xml-bodyparser", corpus.check
        yield "every push of the corpus, encrypted by wechatpy, is accepted in every mode", self.push_all
        for mode in MODES:
            yield f"made anew in {mode} mode, every push of the corpus opens in wechatpy and wechat-crypto to the same text", lambda m=mode: self.opened(m)

    def start(self):
        self.folder = tempfile.TemporaryDirectory(prefix="wxrelay-corpus-")
        self.receivers = {mode: Receiver(mode) for mode in MODES}
        self.crypto = Process("wechat-crypto", ["node", str(corpus.HERE / "crypto.js")])
        config = Path(self.folder.name) / "config.toml"
        config.write_text(self.config())
        self.process = Process("wxrelay", [str(self.binary), "serve", "-c", str(config)], "stderr")
        listening = lambda line: line.get("message") == "listening" and line.get("listener") == "push"
        self.relay = Relay(self.process.wait_for(listening, "address of the push listener")[0]["address"])
        self.process.wait_for(lambda line: line.get("message") == "ready", "`ready`")

    def config(self):
        text = "\n".join(["[server]", 'listen = ["127.0.0.1:0"]', "[admin]", 'listen = "127.0.0.1:0"', "[queue]", 'type = "embedded"',
                          f"path = {json.dumps(self.folder.name + '/store')}", ""])
        for receiver in self.receivers.values():
            peer = receiver.account
            text += f'[targets.{peer.name}]\nurl = "http://127.0.0.1:{receiver.server.server_port}/wx"\nformat = "wechat"\n'
            text += f'mode = "{peer.mode}"\ntoken = "{peer.token}"\nencoding_aes_key = "{peer.key}"\n'
        for account in self.accounts:
            text += f'[accounts.{account.name}]\npath = "{account.path}"\napp_id = "{account.app_id}"\nmode = "{account.mode}"\n'
            text += f'token = "{account.token}"\nencoding_aes_key = "{account.key}"\n'
            names = json.dumps([receiver.account.name for receiver in self.receivers.values()])
            text += f"[[accounts.{account.name}.routes]]\notherwise = true\nto = {names}\n"
        return text

    def push_all(self):
        self.start()
        def send(job):
            account, (name, clear) = job
            answer = self.relay.post(account.path, request(account, clear))
            return None if (answer.status, answer.body) == (200, b"success") else f"{name} in {account.mode}: {answer.status}"
        jobs = [(account, item) for account in self.accounts for item in self.clear.items()]
        with ThreadPoolExecutor(16) as pool:
            expect([refused for refused in pool.map(send, jobs) if refused], [], "pushes that were refused")
        return f"{len(jobs)} pushes"

    def opened(self, mode):
        receiver = self.receivers[mode]
        deliveries = receiver.wait_for(len(MODES) * len(self.clear))
        parsed_by_wechatpy, texts = 0, {account.name: [] for account in self.accounts}
        for name, raw, body in deliveries:
            source = next(account for account in self.accounts if account.name == name)
            peer = Account(source.name, mode, "/wx", source.app_id, receiver.account.token, receiver.account.key)
            query = {key: values[0] for key, values in parse_qs(raw, strict_parsing=True).items()}
            check_signature(peer.token, query["signature"], query["timestamp"], query["nonce"])
            if mode == "plaintext":
                texts[name].append(body)
                continue
            clear, by_itself = self.open(peer, query, body)
            parsed_by_wechatpy += by_itself
            texts[name].append(clear)
        for found in texts.values():
            expect(sorted(found), sorted(self.clear.values()), "texts, as sent")
        return f"{len(deliveries)} pushes" + (f", of {parsed_by_wechatpy} wechatpy parsed the body too" if mode != "plaintext" else "")

    def open(self, peer, query, body):
        """The text inside by two implementations, and whether wechatpy could read the body: expat takes no control characters, nor JSON."""
        root = corpus.read(body)
        sealed = {"Encrypt": root.text_of("Encrypt"), "MsgSignature": query["msg_signature"],
                  "TimeStamp": query["timestamp"], "Nonce": query["nonce"]}
        stamps = (query["msg_signature"], query["timestamp"], query["nonce"])
        clear = peer.crypto().decrypt_message({"Encrypt": sealed["Encrypt"]}, *stamps)
        request = {"op": "open", "token": peer.token, "key": peer.key, "id": peer.app_id, "encrypt": sealed["Encrypt"]}
        opened = self.crypto.ask(request | {"timestamp": query["timestamp"], "nonce": query["nonce"]})
        expect((opened["message"], opened["id"], opened["signature"]), (clear, peer.app_id, query["msg_signature"]), "wechat-crypto's result")
        try:
            expect(peer.crypto().decrypt_message(body, *stamps), clear, "what wechatpy opens by itself")
        except Exception as error:
            if "ExpatError" not in type(error).__name__:
                raise
            return clear, False
        return clear, True

    def end(self):
        for name in ("process", "crypto"):
            if hasattr(self, name):
                getattr(self, name).end()
        for receiver in getattr(self, "receivers", {}).values():
            receiver.server.shutdown()
            receiver.server.server_close()
        if hasattr(self, "folder"):
            self.folder.cleanup()


def request(account, clear):
    """The push of a text in the account's mode and in the text's notation, sealed by wechatpy."""
    sealed = []

    def seal(*of):
        sealed.append(seal_by_wechatpy(*of))
        return sealed[0]

    made = push(account, clear, seal)
    if account.mode == "plaintext":
        return made
    form = corpus.wechat_form(corpus.read(clear), clear)
    body = "\n".join(form[f"{account.mode}_body"]).replace("ENCRYPT", sealed[0][0])
    return Push(made.query, body.encode())
