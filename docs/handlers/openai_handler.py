"""A handler for `format = "json"` that asks an OpenAI-compatible endpoint. Only Python's standard library."""
import base64, hmac, json, os, time  # noqa: E401
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

SECRET = base64.b64decode(os.environ["SECRET"].removeprefix("whsec_"))  # the target's `secret`
URL, MODEL = os.environ["OPENAI_BASE_URL"] + "/chat/completions", os.environ["OPENAI_MODEL"]


def ask(text):
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}]}).encode()
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    with urlopen(Request(URL, body, headers), timeout=55) as answer:  # less than the target's `timeout`
        return json.load(answer)["choices"][0]["message"]["content"]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        id, sent, signatures = (self.headers.get(f"webhook-{name}", "0") for name in ("id", "timestamp", "signature"))
        expected = "v1," + base64.b64encode(hmac.digest(SECRET, f"{id}.{sent}.".encode() + body, "sha256")).decode()
        if not any(hmac.compare_digest(expected, one) for one in signatures.split()) or abs(time.time() - int(sent)) > 300:
            return self.send_error(401)
        event = json.loads(body)
        reply = {"reply": {"msg_type": "text", "content": ask(event["message"]["Content"])}} if event["msg_type"] == "text" else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Handler).serve_forever()
