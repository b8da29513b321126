"""Stand-ins for bots that no package registry has: each answers WeChat as the sources of the original do.

Written from zhayujie/chatgpt-on-wechat (CowAgent: channel/wechatmp/passive_reply.py), bikeread/dify_wechat_plugin
(endpoints/wechat_post.py), zhayujie/bot-on-anything (channel/wechat/wechat_mp_channel.py) and pwh-pwh/aiwechat-vercel
(chat/chat.go, api/wx.go). Nothing is taken from them but times, order of answers, and the words that users see.
"""
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import xmltodict

from bot_model import think

LIMIT = 2048  # bytes of a text that WeChat shows
# Answers that are no reply.
SUCCESS, ERROR = object(), object()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class Manner:
    """A bot, in the mode that the pushes have. `answer` blocks: every request has a thread."""

    path = "/wx"

    def __init__(self, account):
        self.account = account
        self.changed = threading.Condition()
        self.server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"manner": self}))
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, message):
        raise NotImplementedError

    def begin(self, text, keep):
        """Lets the model think in a thread of its own; `keep` gets the answer, under the lock."""
        def work():
            seconds, answer = think(text)
            time.sleep(seconds)
            with self.changed:
                keep(answer)
                self.changed.notify_all()
        threading.Thread(target=work, daemon=True).start()

    def wait(self, holds, seconds):
        with self.changed:
            return self.changed.wait_for(holds, seconds)

    def end(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    manner: Manner

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        query, account = dict(parse_qsl(urlsplit(self.path).query)), self.manner.account
        sealed = query.get("encrypt_type") == "aes"
        if sealed:
            body = account.crypto().decrypt_message(body, query["msg_signature"], query["timestamp"], query["nonce"])
        message = xmltodict.parse(body)["xml"]
        answer = self.manner.answer(message)
        text = "" if answer is ERROR else "success"
        if isinstance(answer, str):
            text = reply(message, answer)
            text = account.crypto().encrypt_message(text, query["nonce"], query["timestamp"]) if sealed else text
        try:
            self.send_response(500 if answer is ERROR else 200)
            self.send_header("content-type", "text/xml")
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            self.close_connection = True  # WeChat has hung up; the bot does not notice either

    def log_message(self, *_):
        """Standard output and error are for the runner."""


def reply(message, text):
    return (f"<xml><ToUserName><![CDATA[{message['FromUserName']}]]></ToUserName><FromUserName><![CDATA[{message['ToUserName']}]]>"
            f"</FromUserName><CreateTime>{int(time.time())}</CreateTime><MsgType><![CDATA[text]]></MsgType>"
            f"<Content><![CDATA[{text}]]></Content></xml>")


def cut(text, limit):
    """The text in two, the first part at most so many bytes."""
    head = text.encode()[:limit].decode(errors="ignore")
    return head, text[len(head):]


class CowAgent(Manner):
    """Works on after WeChat has hung up; the answer goes to the next request of that user, whatever it says.

    A request waits 4 s. Then the first two are left until WeChat has hung up, and the third asks the user to say
    something. Long answers are cut, and the user has to say something for the rest.
    """

    def __init__(self, account):
        self.ready, self.running, self.tries = defaultdict(list), set(), Counter()
        super().__init__(account)

    def answer(self, message):
        user, tag = message["FromUserName"], message["MsgId"]
        with self.changed:
            if not self.ready[user] and user not in self.running:
                self.running.add(user)
                self.begin(message["Content"], lambda answer: (self.ready[user].append(answer), self.running.discard(user)))
            self.tries[tag] += 1
            tried = self.tries[tag]
        if not self.wait(lambda: user not in self.running, 4):
            if tried < 3:
                time.sleep(2)
                return SUCCESS
            return "【正在思考中，回复任意文字尝试获取回复】"
        with self.changed:
            if not self.ready[user]:
                return SUCCESS
            text, more = self.ready[user].pop(0), "\n【未完待续，回复任意文字以继续】"
            if len(text.encode()) <= LIMIT:
                return text
            text, rest = cut(text, LIMIT - len(more.encode()))
            self.ready[user].append(rest)
            return text + more


class Dify(Manner):
    """Answers 500 while the model works, so that WeChat tries again; the third try asks the user to send 1.

    That 1 waits for the answer again, by three tries, and may be sent twice, within 30 s each.
    """

    WAIT, RETRY_WAIT, PATIENCE = 5.0, 3.5, 30.0

    def __init__(self, account):
        self.asked, self.waiting = {}, {}
        super().__init__(account)

    def answer(self, message):
        user, tag = message["FromUserName"], message["MsgId"]
        with self.changed:
            status = self.asked.get(tag)
            retries = 0 if status is None else status["retries"] + 1
            if status is None:
                status = self.asked[tag] = {"result": None}
            status["retries"] = retries
            waiting = self.waiting.get(user) if message["Content"] == "1" else None
            if waiting and time.monotonic() < waiting["until"]:
                return self.go_on(user, waiting, retries)
            if retries == 0:
                self.begin(message["Content"], lambda answer: status.update(result=answer))
            if self.changed.wait_for(lambda: status["result"] is not None, self.RETRY_WAIT if retries else self.WAIT):
                return status["result"]
            if retries < 2:
                return ERROR
            self.waiting[user] = {"asked": status, "until": time.monotonic() + self.PATIENCE, "times": 0}
            return "生成答复中，继续等待请回复1"

    def go_on(self, user, waiting, retries):
        if self.changed.wait_for(lambda: waiting["asked"]["result"] is not None, self.RETRY_WAIT):
            self.waiting.pop(user, None)
            return waiting["asked"]["result"]
        if retries < 2:
            return ERROR
        waiting["times"] += 1
        if waiting["times"] >= 2:
            self.waiting.pop(user, None)
            return "处理时间较长，请稍后重新询问"
        waiting["until"] = time.monotonic() + self.PATIENCE
        return "生成答复中，继续等待请回复1 (剩余1次机会)"


class BotOnAnything(Manner):
    """Leaves two tries without an answer; the third says which word brings it. On WeRoBot, in plaintext mode."""

    path = "/"

    def __init__(self, account):
        self.cache = {}
        super().__init__(account)

    def answer(self, message):
        user, text = message["FromUserName"], message["Content"]
        if text == "继续":
            return self.held(user)
        key = (text, user)
        with self.changed:
            if key in self.cache:
                self.cache[key]["tries"] += 1
            else:
                entry = self.cache[key] = {"tries": 1, "result": None}
                self.begin(text, lambda answer: entry.update(result=answer))
            entry = self.cache[key]
            if self.changed.wait_for(lambda: entry["result"] is not None, 3):
                self.cache.pop(key, None)
                return entry["result"]
            if entry["tries"] == 3:
                return "已开始处理，请稍等片刻后输入\"继续\"查看回复"
            if self.changed.wait_for(lambda: entry["result"] is not None, 1):
                self.cache.pop(key, None)
                return entry["result"]
        time.sleep(1)  # until WeChat has hung up
        return SUCCESS

    def held(self, user):
        with self.changed:
            for key, entry in self.cache.items():
                if key[1] == user:
                    if entry["result"] is None:
                        return "还在处理中，请稍后再试"
                    self.cache.pop(key)
                    return entry["result"]
        return "目前无等待回复信息，请输入对话"


class AiwechatVercel(Manner):
    """Every request asks the model anew. What came too late is kept for the next request with the same text."""

    path = "/api/wx"

    def __init__(self, account):
        self.cache = {}
        super().__init__(account)

    def answer(self, message):
        key, found = (message["FromUserName"], message["Content"]), []
        with self.changed:
            if key in self.cache:
                return self.cache.pop(key)
            self.begin(message["Content"], found.append)
            if self.changed.wait_for(lambda: found, 5):
                return found[0]
            self.changed.wait_for(lambda: found)
            self.cache[key] = found[0]
        return ""  # as a text message without text, long after WeChat has hung up
