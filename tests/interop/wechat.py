"""WeChat's side, by wechatpy: it signs, encrypts, posts and decrypts the answer.

The HTTP is the one real pushes have: HTTP/1.0, `Connection: close`, `User-Agent: Mozilla/4.0`, `Pragma: no-cache`.
"""
import itertools
import json
import random
import socket
import string
import time
from dataclasses import dataclass, field
from http.client import HTTPResponse
from urllib.parse import quote, urlencode

import xmltodict
from wechatpy.crypto import WeChatCrypto
from wechatpy.utils import WeChatSigner

from rig import WAIT, expect, expect_that

OPENID = "oTALK2TjuEGTNoeX76QEjQNrcURx"
GH_ID = "gh_7f083739789a"
numbers = itertools.count(6_074_130_599_188_426_998)


def signature(*parts):
    signer = WeChatSigner()
    signer.add_data(*parts)
    return signer.signature


def encoding_aes_key():
    """43 random characters like the console's: three in four are not canonical base64."""
    return "".join(random.choices(string.ascii_letters + string.digits, k=43))


@dataclass
class Account:
    """The settings of an account in the console, and the path of its pushes."""

    name: str
    mode: str
    path: str
    app_id: str = "wx2c2769f8efd9abc2"
    token: str = field(default_factory=lambda: "".join(random.choices(string.ascii_letters + string.digits, k=32)))
    key: str = field(default_factory=encoding_aes_key)

    def crypto(self):
        return WeChatCrypto(self.token, self.key, self.app_id)


@dataclass
class Push:
    """The bytes of one request."""

    query: str
    body: bytes
    headers: list = field(default_factory=list)  # lines that a proxy has added


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes


def element(name, value):
    return f"<{name}>{value}</{name}>" if isinstance(value, int) else f"<{name}><![CDATA[{value}]]></{name}>"


def message(msg_type, inner="", openid=OPENID, **elements):
    """A message as WeChat writes it: a line feed between elements; `inner` is put in as it is."""
    head = {"ToUserName": GH_ID, "FromUserName": openid, "CreateTime": int(time.time()), "MsgType": msg_type}
    if msg_type != "event":
        elements = {**elements, "MsgId": next(numbers)}
    lines = [element(name, value) for name, value in {**head, **elements}.items()]
    return "<xml>" + "\n".join(lines + ([inner] if inner else [])) + "\n</xml>"


def seal_by_wechatpy(account, clear, timestamp, nonce):
    sealed = xmltodict.parse(account.crypto().encrypt_message(clear, nonce, timestamp))["xml"]
    return sealed["Encrypt"], sealed["MsgSignature"]


def push(account, clear, seal=seal_by_wechatpy, timestamp=None, openid=OPENID):
    """The request that carries the message `clear` in the account's mode."""
    timestamp = timestamp or str(int(time.time()))
    nonce = str(random.randrange(10**8, 10**10))
    query = {
        "signature": signature(account.token, timestamp, nonce),
        "timestamp": timestamp,
        "nonce": nonce,
        "openid": openid,
    }
    if account.mode == "plaintext":
        return Push(urlencode(query), clear.encode())
    encrypt, msg_signature = seal(account, clear, timestamp, nonce)
    query |= {"encrypt_type": "aes", "msg_signature": msg_signature}
    if account.mode == "compatible":
        body = clear.removesuffix("</xml>") + element("Encrypt", encrypt) + "\n</xml>"
    else:
        body = f"<xml>\n    {element('ToUserName', GH_ID)}\n    {element('Encrypt', encrypt)}\n</xml>"
    return Push(urlencode(query), body.encode())


class Relay:
    """Where the relay listens, as a client sees it."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.address = (host, int(port))

    def post(self, path, push):
        return self.request("POST", f"{path}?{push.query}", push.body, push.headers)

    def get(self, path, **query):
        return self.request("GET", f"{path}?{urlencode(query, quote_via=quote)}", None)

    def request(self, method, target, body, headers=()):
        lines = [f"{method} {target} HTTP/1.0", "Host: relay.example", "User-Agent: Mozilla/4.0", "Accept: */*", *headers]
        if body is not None:
            lines += ["Content-Type: text/xml", f"Content-Length: {len(body)}"]
        head = "\r\n".join(lines + ["Pragma: no-cache", "Connection: close", "", ""]).encode()
        with socket.create_connection(self.address, WAIT) as connection:
            connection.sendall(head + (body or b""))
            response = HTTPResponse(connection, method=method)
            response.begin()
            content = response.read()
            headers = {name.lower(): value for name, value in response.getheaders()}
        expect(headers.get("content-length"), str(len(content)), f"{method}: Content-Length")
        expect_that("transfer-encoding" not in headers, f"{method}: the answer is chunked")
        return Answer(response.status, headers, content)


def open_by_wechatpy(account, answer):
    """The clear reply in an encrypted answer, checked as WeChat checks it."""
    expect(answer.status, 200, "status of the reply")
    expect_that(answer.headers["content-type"].split(";")[0] == "text/xml", f"reply is {answer.headers['content-type']}")
    sealed = xmltodict.parse(answer.body)["xml"]
    expect(sorted(sealed), ["Encrypt", "MsgSignature", "Nonce", "TimeStamp"], "elements of the sealed reply")
    expect_that(sealed["TimeStamp"].isdigit() and len(sealed["TimeStamp"]) == 10, "TimeStamp is not in seconds")
    clear = account.crypto().decrypt_message(sealed, sealed["MsgSignature"], sealed["TimeStamp"], sealed["Nonce"])
    return sealed, xmltodict.parse(clear)["xml"], clear


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
