"""One whole push: the relay under callgrind, sent pushes one after the other on one connection that is kept.

One at a time, so that each is a commit of its own and runs the same way every time. Only those after the first hundreds
are counted: buffers have grown by then, and what is made once is made.
"""
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import callgrind
import wechat

WARM_UP, COUNTED = 200, 500
WAIT = 120.0  # seconds; under callgrind all is slow
CONFIG = """\
[server]
listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:0"
[queue]
path = {store}
[accounts.shop]
path = "{path}"
app_id = "{app_id}"
token = "{token}"
encoding_aes_key = "{key}"
mode = "secure"
[[accounts.shop.routes]]
match = {{ event = "{event}" }}
to = ["app"]
[targets.app]
url = "{url}"
format = "json"
"""


def instructions(binary, delivered):
    """A Counter by function of a push's instructions; `delivered`: to a handler that answers 204, else to nobody."""
    with tempfile.TemporaryDirectory(prefix="wxrelay-perf-") as folder, Handler() as handler:
        relay = Relay(binary, Path(folder), handler.url, "SCAN" if delivered else "CLICK")
        try:
            arrived = handler.arrived if delivered else None
            requests = wechat.requests(WARM_UP + COUNTED)
            with relay.connection() as connection:
                send(connection, requests[:WARM_UP], arrived)
                relay.count(True)
                send(connection, requests[WARM_UP:], arrived)
                relay.count(False)
        finally:
            relay.end()
        functions, _ = callgrind.counted(relay.counts)
    return Counter({function: count / COUNTED for function, count in functions.items()})


def send(connection, requests, arrived):
    """Each when the one before is answered and, where `arrived` is given, delivered."""
    for request in requests:
        connection.sendall(request)
        answer = b""
        while not answer.endswith(b"\r\n\r\nsuccess"):
            received = connection.recv(4096)
            if not received or not answer.startswith(b"HTTP/1.1 200"[:len(answer)]):
                raise SystemExit(f"a push was answered {answer + received!r}")
            answer += received
        if arrived is not None:
            if not arrived.acquire(timeout=WAIT):
                raise SystemExit(f"a push was not delivered within {WAIT:.0f} s")


class Handler:
    """A target that takes everything; `arrived` is a count of what came."""

    def __init__(self):
        arrived = self.arrived = threading.Semaphore(0)

        class Take(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response_only(204)
                self.end_headers()
                arrived.release()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()


class Relay:
    """`wxrelay serve` under callgrind, which counts only between `count(True)` and `count(False)`."""

    def __init__(self, binary, folder, url, event):
        self.counts, self.log = folder / "counts", folder / "log"
        config = folder / "config.toml"
        config.write_text(CONFIG.format(
            store=json.dumps(str(folder / "store")), path=wechat.PATH, app_id=wechat.APP_ID, token=wechat.TOKEN,
            key=wechat.KEY, event=event, url=url))
        command = [*callgrind.COMMAND, "--instr-atstart=no", f"--callgrind-out-file={self.counts}",
                   f"--log-file={folder / 'valgrind'}", str(binary), "serve", "-c", str(config)]
        # As many threads on every machine.
        environment = os.environ | {"TOKIO_WORKER_THREADS": "2"}
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)

    def connection(self):
        """A connection to the push listener, once the relay is ready."""
        connection = socket.create_connection(self._address(), WAIT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _address(self):
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline and self.child.poll() is None:
            lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
            if any(line["message"] == "ready" for line in lines):
                address = next(line["address"] for line in lines if line.get("listener") == "push")
                host, port = address.rsplit(":", 1)
                return host, int(port)
            time.sleep(0.05)
        raise SystemExit(f"the relay does not get ready: {self.log.read_text()[-2000:]}")

    def count(self, on):
        done = subprocess.run(
            ["callgrind_control", "-i", "on" if on else "off", str(self.child.pid)], capture_output=True, text=True, timeout=WAIT)
        if done.returncode != 0 or "OK" not in done.stdout:
            raise SystemExit(f"callgrind_control: {done.stdout}{done.stderr}")

    def end(self):
        self.child.terminate()
        try:
            self.child.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
