"""A relay with peers of its own, for parts that need other accounts and targets than harness.py has; and taps that record requests.

A Tap stands between the relay and a program: it keeps every request with the program's answer, passes it on byte for
byte, and answers the next ones with 503 itself when told to.
"""
import http.client
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from rig import WAIT, Failure, Process, expect_that, free_port
from wechat import Relay

HERE = Path(__file__).resolve().parent
HANDLERS = HERE.parent.parent / "docs" / "handlers"


@dataclass
class Request:
    """One request that the relay sent."""

    version: str
    target: str
    headers: dict
    body: bytes
    status: int
    answer: bytes

    def query(self):
        """The parameters in their order."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))


class Tap:
    """A proxy between the relay and a program on `port`; without one it answers 204 itself."""

    def __init__(self, name, port=None):
        self.name, self.port = name, port
        self.requests, self.failing = [], 0
        self.news = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (TapHandler,), {"tap": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, handler, body):
        """The program's answer, or the 503 that was asked for."""
        with self.news:
            if self.failing > 0 and handler.command == "POST":
                self.failing -= 1
                return 503, "text/plain", b""
        if self.port is None:
            return 204, None, b""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        connection.request(handler.command, handler.path, body, dict(handler.headers.items()))
        response = connection.getresponse()
        return response.status, response.getheader("content-type"), response.read()

    def keep(self, request):
        with self.news:
            self.requests.append(request)
            self.news.notify_all()

    def wait_for(self, predicate, count=1):
        """The first `count` requests that `predicate` holds for."""
        deadline = time.monotonic() + WAIT
        with self.news:
            while True:
                found = [request for request in self.requests if predicate(request)]
                if len(found) >= count:
                    return found[:count]
                if not self.news.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise Failure(f"{self.name}: {len(found)} of {count} requests came, of {len(self.requests)}")


class TapHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tap: Tap

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        status, kind, answer = self.tap.answer(self, body or None)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.tap.keep(Request(self.request_version, self.path, headers, body, status, answer))
        self.send_response(status)
        if kind:
            self.send_header("content-type", kind)
        if status != 204:
            self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_):
        """Standard output and error are for the runner."""


class Stand:
    """A relay and the programs behind it, in a folder of their own."""

    def __init__(self, binary):
        self.binary = binary
        self.folder = tempfile.TemporaryDirectory(prefix="wxrelay-interop-")
        self.path = Path(self.folder.name)
        self.processes = []
        self.programs = []

    def process(self, name, command, stream="stdout", **more):
        process = Process(name, command, stream, **more)
        self.processes.append(process)
        return process

    def program(self, command, **settings):
        """Starts a program that reads its settings from the environment and listens on PORT; gives the port."""
        port = free_port()
        environment = {name: value for name, value in os.environ.items() if name not in ("TOKEN", "APP_ID", "ENCODING_AES_KEY", "SECRET")}
        environment |= {"PORT": str(port), "NODE_PATH": str(HERE / "node_modules"), "NODE_NO_WARNINGS": "1"} | settings
        log = open(self.path / f"program-{port}.log", "wb")
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.path)
        log.close()
        self.programs.append((child, command, port))
        return port

    def await_programs(self):
        """Returns when all of them listen."""
        deadline = time.monotonic() + WAIT
        for child, command, port in self.programs:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    said = (self.path / f"program-{port}.log").read_text(errors="replace")[-2000:]
                    expect_that(child.poll() is None and time.monotonic() < deadline, f"{command} does not listen: {said}")
                    time.sleep(0.05)

    def serve(self, config, server="", admin="", admin_listen="127.0.0.1:0"):
        """Starts the relay with the configuration, and gives its push listener; `server`, `admin`: more of those tables."""
        self.config = self.path / "config.toml"
        store = json.dumps(str(self.path / "store"))
        self.config.write_text(
            f'[server]\nlisten = ["127.0.0.1:0"]\n{server}\n[admin]\nlisten = "{admin_listen}"\n{admin}\n[queue]\npath = {store}\n{config}'
        )
        relay = self.process("wxrelay", [str(self.binary), "serve", "-c", str(self.config)], "stderr")
        listening = lambda name: lambda line: line.get("message") == "listening" and line.get("listener") == name
        address = relay.wait_for(listening("push"), "address of the push listener")[0]["address"]
        self.admin = relay.wait_for(listening("admin"), "address of the admin listener")[0]["address"]
        relay.wait_for(lambda line: line.get("message") == "ready", "`ready`")
        return Relay(address)

    def run(self, *command, config=None):
        """A command of the relay with its configuration: exit code, stdout, stderr."""
        line = [str(self.binary), *command, "-c", str(config or self.config)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    def audit(self):
        code, told, error = self.run("audit", "--json")
        expect_that(code == 0, f"audit ended with {code}: {told}{error}")
        return json.loads(told)

    def end(self):
        for process in reversed(self.processes):
            process.end()
        for child, _, _ in self.programs:
            child.terminate()
        for child, _, _ in self.programs:
            try:
                child.wait(WAIT)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.folder.cleanup()
