"""A stand-in for open.weixin.qq.com and api.weixin.qq.com, and the network in which browsers and clients find it by name.

The rules are WeChat's, from its public documents: only the host of redirect_uri is compared with the callback domain; the
state of an official account has at most 128 letters and digits; a code works once; errors come with status 200; a person
who refuses is sent back with the state alone.
"""
import datetime
import json
import secrets
import select
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

WECHAT = ("open.weixin.qq.com", "api.weixin.qq.com")


class Authority:
    """A certificate authority, and one certificate of it for all `names`."""

    def __init__(self, folder, names):
        now = datetime.datetime.now(datetime.timezone.utc)
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "interop")])

        def certificate(subject, public_key):
            made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
            made = made.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            return made.not_valid_after(now + datetime.timedelta(days=30))

        ca = certificate(issuer, ca_key.public_key())
        ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        ca = ca.add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        usage = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
                               "key_agreement", "encipher_only", "decipher_only"), False)
        ca = ca.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        ca = ca.sign(ca_key, hashes.SHA256())
        leaf = certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]), key.public_key())
        leaf = leaf.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        leaf = leaf.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        leaf = leaf.sign(ca_key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        self.ca, self.cert, self.key = (Path(folder) / name for name in ("ca.pem", "cert.pem", "key.pem"))
        self.ca.write_bytes(ca.public_bytes(pem))
        self.cert.write_bytes(leaf.public_bytes(pem))
        self.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        self.key.chmod(0o600)
        digest = hashes.Hash(hashes.SHA256())
        digest.update(key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
        self.spki = digest.finalize()  # for a browser that takes this key alone without its authority

    def server(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context


class Names:
    """A proxy for CONNECT: the part of DNS. Every name leads to a port of this machine, unknown ones nowhere."""

    def __init__(self):
        self.ports = {}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client):
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                part = client.recv(4096)
                if not part:
                    return
                head += part
            verb, authority = head.split(b" ", 2)[:2]
            port = self.ports.get(authority.decode().rsplit(":", 1)[0])
            if verb != b"CONNECT" or port is None:
                client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", port)) as server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                other = {client: server, server: client}
                while True:
                    for readable in select.select([client, server], [], [])[0]:
                        try:
                            data = readable.recv(65536)
                        except OSError:
                            return
                        if not data:
                            return
                        other[readable].sendall(data)

    def end(self):
        self.listener.close()


class OpenPlatform:
    """WeChat's login. `refuses`: the next person presses "refuse"."""

    def __init__(self, authority, callback_domain):
        self.callback_domain, self.refuses = callback_domain, False
        self.codes, self.used, self.asked = {}, set(), []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (OpenPlatformHandler,), {"platform": self}))
        self.server.daemon_threads = True
        self.server.socket = authority.server().wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def code(self, openid="oPerson1"):
        code = secrets.token_hex(16)
        self.codes[code] = openid
        return code

    def authorize(self, path, query):
        """The redirect back, or the reason that WeChat shows the person."""
        redirect, state = query.get("redirect_uri", [""])[0], query.get("state", [""])[0]
        self.asked.append((path, redirect, state))
        if urlsplit(redirect).scheme != "https" or urlsplit(redirect).hostname != self.callback_domain:
            return None, "redirect_uri 参数错误"
        if path == "/connect/oauth2/authorize" and not (len(state) <= 128 and (state == "" or state.isalnum() and state.isascii())):
            return None, "state 参数错误"
        pairs = {"state": state} if self.refuses else {"code": self.code(), "state": state}
        self.refuses = False
        return redirect + ("&" if urlsplit(redirect).query else "?") + urlencode(pairs), None

    def token(self, query):
        code = query.get("code", [""])[0]
        if code in self.used:
            return {"errcode": 40163, "errmsg": "code been used"}
        if code not in self.codes:
            return {"errcode": 40029, "errmsg": "invalid code"}
        self.used.add(code)
        return {"access_token": "t-" + code, "expires_in": 7200, "refresh_token": "r", "openid": self.codes[code],
                "scope": "snsapi_login", "unionid": "u-" + self.codes[code]}

    def end(self):
        self.server.shutdown()
        self.server.server_close()


class OpenPlatformHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    platform = None

    def do_GET(self):
        self.answer(parse_qs(urlsplit(self.path).query, keep_blank_values=True))

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        self.answer(query | parse_qs(body, keep_blank_values=True))

    def answer(self, query):
        path = urlsplit(self.path).path
        if path in ("/connect/qrconnect", "/connect/oauth2/authorize"):
            location, reason = self.platform.authorize(path, query)
            return self.send(302 if location else 200, "text/plain; charset=utf-8", reason or "", location)
        if path == "/sns/oauth2/access_token":
            return self.send(200, "text/plain", json.dumps(self.platform.token(query)))
        if path == "/sns/userinfo":
            openid = self.platform.codes.get(query.get("access_token", [""])[0].removeprefix("t-"), "")
            user = {"openid": openid, "nickname": openid, "headimgurl": "", "unionid": "u-" + openid}
            return self.send(200, "text/plain", json.dumps(user))
        return self.send(404, "text/plain", "")

    def send(self, status, kind, text, location=None):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
