"""WeChat's side, written without a line of the relay: signs, seals and opens with pycryptodome, as shared senders do.

A push is known by its number: the number and the second it was first pushed in give its clear text, byte for byte, so
that a retry has the same text, and whatever is delivered can be compared with what was pushed.
"""
import base64
import hashlib
import os
import re
import struct
import time

from Crypto.Cipher import AES

TOKEN = "pamtest"
KEY = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"
APP_ID = "wxb11529c136998cb6"
PATH = "/wx"
GH_ID = "gh_0123456789ab"
NUMBER = re.compile(r"<!\[CDATA\[(?:login_|hello )(\d+)")

_key = base64.b64decode(KEY + "=")


def is_scan(number):
    """A third of the pushes are scans; the others are texts, and every sixteenth of all is a long text."""
    return number % 3 == 0


def clear_text(number, second):
    """The text that WeChat encrypts: the same number and second give the same text."""
    user = f"o{number % 997:027d}"
    head = (f"<xml><ToUserName><![CDATA[{GH_ID}]]></ToUserName>\n<FromUserName><![CDATA[{user}]]></FromUserName>\n"
            f"<CreateTime>{second}</CreateTime>\n")
    if is_scan(number):
        return head + (f"<MsgType><![CDATA[event]]></MsgType>\n<Event><![CDATA[SCAN]]></Event>\n"
                       f"<EventKey><![CDATA[login_{number}]]></EventKey>\n<Ticket><![CDATA[gQ{number:030d}]]></Ticket>\n</xml>")
    tail = " 你好" * (1500 if number % 16 == 1 else 1)
    return head + (f"<MsgType><![CDATA[text]]></MsgType>\n<Content><![CDATA[hello {number}{tail}]]></Content>\n"
                   f"<MsgId>{6074130599188000000 + number}</MsgId>\n</xml>")


def number_of(clear):
    found = NUMBER.search(clear)
    return int(found.group(1)) if found else None


def signature(*parts):
    return hashlib.sha1("".join(sorted(parts)).encode()).hexdigest()


def seal(text):
    data = os.urandom(8).hex().encode() + struct.pack(">I", len(text)) + text + APP_ID.encode()
    pad = 32 - len(data) % 32
    return base64.b64encode(AES.new(_key, AES.MODE_CBC, _key[:16]).encrypt(data + bytes([pad]) * pad)).decode()


def unseal(body):
    """The clear text in an encrypted push as received."""
    encrypt = re.search(rb"<Encrypt><!\[CDATA\[([^\]]+)\]\]></Encrypt>", body).group(1)
    data = AES.new(_key, AES.MODE_CBC, _key[:16]).decrypt(base64.b64decode(encrypt))
    size = struct.unpack(">I", data[16:20])[0]
    if data[20 + size:-data[-1]] != APP_ID.encode():
        raise ValueError("another AppID in the encrypted text")
    return data[20:20 + size].decode()


def request(clear):
    """A whole HTTP request as WeChat sends it: HTTP/1.0, a connection of its own, encrypted and signed again at every try."""
    now, nonce = str(int(time.time())), str(struct.unpack(">I", os.urandom(4))[0] + 10**9)
    encrypt = seal(clear.encode())
    query = (f"signature={signature(TOKEN, now, nonce)}&timestamp={now}&nonce={nonce}&openid=o&encrypt_type=aes"
             f"&msg_signature={signature(TOKEN, now, nonce, encrypt)}")
    body = f"<xml><ToUserName><![CDATA[{GH_ID}]]></ToUserName><Encrypt><![CDATA[{encrypt}]]></Encrypt></xml>".encode()
    head = (f"POST {PATH}?{query} HTTP/1.0\r\nHost: relay.example\r\nUser-Agent: Mozilla/4.0\r\nContent-Type: text/xml\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n")
    return head.encode() + body
