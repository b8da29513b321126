"""An endpoint that speaks OpenAI's chat completions, for docs/handlers/openai_handler.py: the model of bot_model.py."""
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler

from bot_manners import Server
from bot_model import think


class Endpoint:
    def __init__(self):
        self.key = secrets.token_hex(16)
        self.server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"endpoint": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def end(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        known = self.path == "/v1/chat/completions" and asked["model"] and asked["messages"][-1]["role"] == "user"
        if self.headers["authorization"] != f"Bearer {self.endpoint.key}" or not known:
            return self.send_error(401)
        seconds, text = think(asked["messages"][-1]["content"])
        time.sleep(seconds)
        answer = json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        """Standard output and error are for the runner."""
