"""A WeChat backend on wechatpy, in secure mode: the peer behind `format = "wechat"`.

It believes that it talks to WeChat itself: it checks both signatures, opens the envelope, lets
wechatpy parse the message and answers by what it says, sealed with its own credentials. Prints one
JSON line once it listens, then one per push. Ends when stdin is closed.

What it answers: `echo N TEXT` -> a text reply, `news` -> an article, `image` -> an image, anything else
-> an empty body, which is WeChat's "no reply".
"""
import argparse
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from wechatpy import parse_message
from wechatpy.crypto import WeChatCrypto
from wechatpy.replies import ArticlesReply, ImageReply, TextReply
from wechatpy.utils import check_signature

printing = threading.Lock()


def report(line):
    with printing:
        print(json.dumps(line), flush=True)


def reply_to(message):
    """The reply wechatpy makes of the message, or None."""
    said = getattr(message, "content", "") or ""
    if said.startswith("echo "):
        return TextReply(content=said.split(" ", 2)[2], message=message)
    if said == "news":
        reply = ArticlesReply(message=message)
        reply.add_article({"title": "标题 <1>", "description": "a & b", "image": "http://img.example/1", "url": "http://example/?a=1&b=2"})
        return reply
    if said == "image":
        return ImageReply(media_id="MEDIA_1", message=message)
    return None


class Backend(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            status, answer = 200, self.handle_push(query, body)
        except Exception as error:  # whatever is wrong with the push, the runner has to read it
            report({"error": repr(error), "query": query, "body": body.decode("utf-8", "replace")})
            status, answer = 403, b""
        self.send_response(status)
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def handle_push(self, query, body):
        settings = self.server.settings
        crypto = WeChatCrypto(settings.token, settings.key, settings.app_id)
        check_signature(settings.token, query["signature"], query["timestamp"], query["nonce"])
        clear = crypto.decrypt_message(body, query["msg_signature"], query["timestamp"], query["nonce"])
        message = parse_message(clear)
        report({
            "query": query,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "outer": body.decode(),
            "clear": clear,
            "class": type(message).__name__,
            "source": message.source,
            "content": getattr(message, "content", None),
            "scene": str(getattr(message, "scene_id", "") or ""),
        })
        reply = reply_to(message)
        if reply is None:
            return b""
        return crypto.encrypt_message(reply.render(), query["nonce"], query["timestamp"]).encode()

    def log_message(self, *_):
        """Standard output and error are for the runner."""


def end_with_stdin():
    sys.stdin.read()
    os._exit(0)


def main():
    arguments = argparse.ArgumentParser()
    for name in ("--token", "--key", "--app-id"):
        arguments.add_argument(name, required=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    server.settings = arguments.parse_args()
    threading.Thread(target=end_with_stdin, daemon=True).start()
    report({"listening": server.server_address[1]})
    server.serve_forever()


if __name__ == "__main__":
    main()
