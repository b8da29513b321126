"""WeChat's side: distinct pushes in secure mode, sealed by openssl, so that nothing but Python's own library is needed."""
import base64
import hashlib
import struct
import subprocess
import time

TOKEN = "pamtest"
KEY = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"
APP_ID = "wxb11529c136998cb6"
PATH = "/wechat/events"
GH_ID = "gh_0a1b2c3d4e5f"
TICKET = "gQGh8TwAAAAAAAAAAS5odHRwOi8vd2VpeGluLnFxLmNvbS9xLzAyQ1ZpcjFfRGpmRzExDMAwMHcwN1oAAgQ"


def requests(count):
    """Whole HTTP requests for a connection that is kept: scans, each by a user of its own, all of one length."""
    now = str(int(time.time()))
    return [request(number, now, sealed) for number, sealed in enumerate(seal([scan(number, now) for number in range(count)]))]


def scan(number, now):
    return (f"<xml><ToUserName><![CDATA[{GH_ID}]]></ToUserName>\n<FromUserName><![CDATA[{openid(number)}]]></FromUserName>\n"
            f"<CreateTime>{now}</CreateTime>\n<MsgType><![CDATA[event]]></MsgType>\n<Event><![CDATA[SCAN]]></Event>\n"
            f"<EventKey><![CDATA[login_{number:010}]]></EventKey>\n<Ticket><![CDATA[{TICKET}]]></Ticket>\n</xml>")


def openid(number):
    return f"oPerf{number:023}"


def request(number, now, sealed):
    nonce = str(1_000_000_000 + number)
    query = (f"signature={signature(TOKEN, now, nonce)}&timestamp={now}&nonce={nonce}&openid={openid(number)}"
             f"&encrypt_type=aes&msg_signature={signature(TOKEN, now, nonce, sealed)}")
    body = f"<xml>\n    <ToUserName><![CDATA[{GH_ID}]]></ToUserName>\n    <Encrypt><![CDATA[{sealed}]]></Encrypt>\n</xml>"
    head = (f"POST {PATH}?{query} HTTP/1.1\r\nHost: relay.example\r\nUser-Agent: Mozilla/4.0\r\nAccept: */*\r\n"
            f"Content-Type: text/xml\r\nContent-Length: {len(body)}\r\nPragma: no-cache\r\n\r\n")
    return (head + body).encode()


def signature(*parts):
    return hashlib.sha1("".join(sorted(parts)).encode()).hexdigest()


def seal(texts):
    """Each text in its envelope, by one run of openssl.

    openssl goes on from text to text where each should begin with the IV anew. That changes what the first block of an
    envelope opens to and no other, and the first block is 16 random bytes, which nobody reads.
    """
    envelopes = [envelope(text.encode()) for text in texts]
    key = base64.b64decode(KEY + "=")
    command = ["openssl", "enc", "-aes-256-cbc", "-nopad", "-K", key.hex(), "-iv", key[:16].hex()]
    sealed = subprocess.run(command, input=b"".join(envelopes), capture_output=True, check=True).stdout
    cut = []
    for one in envelopes:
        cut.append(base64.b64encode(sealed[:len(one)]).decode())
        sealed = sealed[len(one):]
    return cut


def envelope(text):
    data = bytes(16) + struct.pack(">I", len(text)) + text + APP_ID.encode()
    pad = 32 - len(data) % 32
    return data + bytes([pad]) * pad
