"""What three.py needs: processes as the services of a compose file, a sender of pushes as WeChat sends them, a target."""
import asyncio
import contextlib
import hashlib
import http.server
import json
import os
import pwd
import re
import signal
import struct
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path

import check_jsonschema
import jsonschema

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 5.0  # seconds: WeChat closes the connection then, and tries again


def is_root():
    return os.geteuid() == 0


def free_network():
    """The first three numbers of a network of 127.0.0.0/8 that no other process uses."""
    pid = os.getpid()
    return f"127.{(pid >> 8) & 127 | 64}.{pid & 255}"


def schema_errors(plan):
    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas/vendor"
    schema = json.loads((folder / "compose-spec.json").read_text())
    return [error.message for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(plan)]


def names_in_haproxy(text):
    """By backend: the servers' names and addresses."""
    found = {}
    for part in re.split(r"^backend ", text, flags=re.M)[1:]:
        found[part.split()[0]] = dict(re.findall(r"^    server (\S+) ([\d.]+):8080", part, re.M))
    return found


def wait_until(holds, what, seconds, told=lambda: ""):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, RuntimeError):
            if holds():
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s {told()}")
        time.sleep(0.1)


class Service:
    """One process, as the user of its container where this process is root."""

    def __init__(self, name, command, environment=None, user=None, log=None):
        self.name, self.command = name, [str(word) for word in command]
        self.environment = {"PATH": os.environ["PATH"], **(environment or {})}
        self.log, self.child = log, None
        self.words, self.restarts = (), 0
        if user == "postgres" and all(entry.pw_name != user for entry in pwd.getpwall()):
            user = "nobody"
        self.user = user

    def line(self, words):
        prefix = []
        if self.user is not None and is_root():
            number = pwd.getpwnam(self.user).pw_uid if isinstance(self.user, str) else self.user
            prefix = ["setpriv", "--reuid", str(number), "--regid", str(number), "--clear-groups"]
        return [*prefix, *self.command, *words]

    def run(self, *words):
        """Its exit code, and what it says on stderr, or else on stdout."""
        done = subprocess.run(self.line(words), env=self.environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stderr or (done.stdout if done.returncode else "")

    def output(self):
        done = subprocess.run(self.line(()), env=self.environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"{self.name}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()

    def start(self, *words):
        self.words = words
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(self.line(words), env=self.environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                          start_new_session=True)

    def is_ready(self):
        """By the image's health check. One that has ended is started again, as Docker does."""
        if self.child.poll() is not None:
            self.restarts += 1
            self.start(*self.words)
        return self.run("healthcheck")[0] == 0

    def kill(self):
        self.child.kill()
        self.child.wait()

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(30)

    def freeze(self):
        self.child.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.child.send_signal(signal.SIGCONT)

    def family(self):
        """It and all processes below it."""
        parents = defaultdict(list)
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if entry.name.isdigit():
                    parents[int((entry / "stat").read_text().rpartition(")")[2].split()[1])].append(int(entry.name))
        found = [self.child.pid]
        for pid in found:
            found += parents[pid]
        return found

    def signal_family(self, number):
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_group(self):
        """As when its machine is lost."""
        self.signal_family(signal.SIGSTOP)
        self.signal_family(signal.SIGKILL)
        self.child.wait()

    def freeze_group(self):
        self.signal_family(signal.SIGSTOP)

    def thaw_group(self):
        self.signal_family(signal.SIGCONT)

    def end(self):
        if self.child and self.child.poll() is None:
            self.kill_group()


class Pushes:
    """Pushes in plaintext mode, each tried up to 3 times as WeChat does; a failed try is not repeated at once."""

    numbers = iter(range(1, 1 << 60))

    def __init__(self, three, address):
        self.token = (three.compose / "etc/relay/token").read_text().strip()
        self.source, self.address = f"{three.net}.200", address
        self.tries, self.answered, self.slowest, self.most = {}, set(), 0.0, 20
        self.ending = False

    def request(self, number, second):
        now, nonce = str(int(time.time())), str(struct.unpack(">I", os.urandom(4))[0])
        signature = hashlib.sha1("".join(sorted((self.token, now, nonce))).encode()).hexdigest()
        body = (f"<xml><ToUserName><![CDATA[gh_0123456789ab]]></ToUserName><FromUserName><![CDATA[o{number % 97:027d}]]></FromUserName>"
                f"<CreateTime>{second}</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[push {number}]]></Content>"
                f"<MsgId>{6074130599188000000 + number}</MsgId></xml>").encode()
        head = (f"POST /wechat/events?signature={signature}&timestamp={now}&nonce={nonce}&openid=o HTTP/1.0\r\nHost: relay.example.com\r\n"
                f"User-Agent: Mozilla/4.0\r\nAccept: */*\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n")
        return head.encode() + body

    async def attempt(self, number, second, source=None):
        """The status, None without an answer."""
        writer = None
        try:
            opened = asyncio.open_connection(*self.address, local_addr=(source or self.source, 0))
            reader, writer = await asyncio.wait_for(opened, PATIENCE)
            writer.write(self.request(number, second))
            answer = await asyncio.wait_for(reader.read(), PATIENCE)
            status = int(answer.split(b" ")[1])
            return status if status != 200 or answer.endswith(b"\r\n\r\nsuccess") else f"200, but {answer[-60:]}"
        except (OSError, ValueError, IndexError, asyncio.TimeoutError):
            return None
        finally:
            if writer is not None:
                writer.transport.abort()

    async def single(self, source):
        number = next(self.numbers)
        return await self.attempt(number, int(time.time()), source)

    async def push(self):
        number, second = next(self.numbers), int(time.time())
        self.tries[number] = tries = []
        while len(tries) < self.most:
            begun = time.monotonic()
            tries.append(await self.attempt(number, second))
            if tries[-1] == 200:
                self.slowest = max(self.slowest, time.monotonic() - begun)
                self.answered.add(number)
                return
            # 5 s after the try before, as WeChat's tries are.
            await asyncio.sleep(max(0.5, PATIENCE - (time.monotonic() - begun)))

    async def send(self, rate):
        tasks, due = set(), time.monotonic()
        while not self.ending:
            tasks.add(asyncio.create_task(self.push()))
            due += 1 / rate
            await asyncio.sleep(max(0, due - time.monotonic()))
        await asyncio.gather(*tasks)

    def finish(self):
        self.ending = True


class Target:
    """Counts which pushes arrive, under which ids."""

    def __init__(self, host):
        self.expected, self.ids = set(), defaultdict(set)
        target = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                found = re.search(rb"push (\d+)", body)
                if found:
                    target.ids[int(found.group(1))].add(self.headers["webhook-id"] or json.loads(body).get("id"))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client):
                pass  # a relay was killed

        self.server = Server((host, 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def missing(self):
        return self.expected - set(self.ids)

    def ids_apart(self):
        return {number: ids for number, ids in self.ids.items() if len(ids) != 1}

    def end(self):
        self.server.shutdown()
        self.server.server_close()
