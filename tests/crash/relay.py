"""The relay as a process: start, output, kill; and the configuration that this folder uses."""
import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import wechat
from rig import ROOT

READY = 30.0  # seconds; it takes milliseconds, a busy machine is allowed more
HERE = Path(__file__).resolve().parent

CONFIG = """\
[server]
listen = ["127.0.0.1:0"]
drain = "10s"
[admin]
listen = "127.0.0.1:0"
[queue]
{queue}
[log]
level = "warn,wxrelay::app=info"
[accounts.shop]
path = "{path}"
app_id = "{app_id}"
token = "{token}"
encoding_aes_key = "{key}"
mode = "secure"
[[accounts.shop.routes]]
match = {{ event = "SCAN" }}
to = ["login", "crm"]
[[accounts.shop.routes]]
otherwise = true
to = ["crm", "flaky"]
[targets.login]
role = "identity"
url = "http://127.0.0.1:{login}/"
format = "raw"
retry = ["50ms"]
expire_after = "24h"
[targets.crm]
url = "http://127.0.0.1:{crm}/"
format = "json"
retry = {retry}
[targets.flaky]
url = "http://127.0.0.1:{flaky}/"
format = "json"
retry = {retry}
"""
# Enough retries that no delivery to the flaky target becomes a dead letter by chance.
RETRY = ["50ms"] * 100


def targets_of(number):
    """Where the routes send a push."""
    return ("login", "crm") if wechat.is_scan(number) else ("crm", "flaky")


def embedded(store):
    """The table [queue] of a store in a folder."""
    return f'type = "embedded"\npath = {json.dumps(str(store))}'


def write_config(path, queue, targets):
    """`queue`: the lines of the table [queue]."""
    ports = {target.name: target.port for target in targets}
    path.write_text(CONFIG.format(
        queue=queue, retry=json.dumps(RETRY), path=wechat.PATH, app_id=wechat.APP_ID, token=wechat.TOKEN,
        key=wechat.KEY, **ports))


class Ended(Exception):
    """The relay exited by itself; `code` is its exit code."""

    def __init__(self, code, tail):
        super().__init__(f"the relay ended by itself with {code}: " + " | ".join(tail))
        self.code = code


class Relay:
    """One life of the relay: `start`, then `ready`, then `kill` or `stop`."""

    def __init__(self, binary, config, environment=None, prefix=(), note=None):
        """`prefix`: what the command begins with. `note` hears of every line of the log."""
        self.command = [*prefix, str(binary), "serve", "-c", str(config)]
        self.note = note or (lambda line: None)
        self.environment = {**os.environ, **(environment or {})}
        self.address = asyncio.get_running_loop().create_future()
        self.admin = None  # (host, port)
        self.tail = []
        self.child = None
        self.handle = None

    async def start(self):
        self.child = await asyncio.create_subprocess_exec(
            *self.command, env=self.environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE)
        # Popen's own method to send a signal polls the exit code first, and the loop then misses it.
        with contextlib.suppress(ProcessLookupError):  # it may be over already
            self.handle = os.pidfd_open(self.child.pid)
        self.reader = asyncio.create_task(self._read())

    async def _read(self):
        push = None
        async for text in self.child.stderr:
            try:
                line = json.loads(text)
            except ValueError:
                line = {"message": text.decode(errors="replace").strip()}
            self.note(line)
            if line.get("message") == "listening":
                host, port = line["address"].rsplit(":", 1)
                if line["listener"] == "push":
                    push = (host, int(port))
                else:
                    self.admin = (host, int(port))
            elif line.get("message") == "ready" and not self.address.done():
                self.address.set_result(push)
            self.tail = [*self.tail[-5:], text.decode(errors="replace").strip()]
        code = await self.child.wait()
        if not self.address.done():
            self.address.set_exception(Ended(code, self.tail))
            self.address.exception()  # not every caller asks

    async def ready(self):
        """The address for pushes; Ended if it exits before."""
        return await asyncio.wait_for(asyncio.shield(self.address), READY)

    async def readiness(self):
        """The answer of `/readyz`; None if it exits meanwhile."""
        return await self.ask("/readyz")

    async def ask(self, path):
        """What the admin listener answers to GET; None if it exits meanwhile."""
        try:
            reader, writer = await asyncio.open_connection(*self.admin)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = await asyncio.wait_for(reader.read(), READY)
            writer.close()
        except OSError:
            return None
        return answer.partition(b"\r\n\r\n")[2].decode() or None

    def is_alive(self):
        return self.child.returncode is None

    async def ended(self, within=READY):
        """Waits until it exits; the exit code."""
        code = await asyncio.wait_for(self.child.wait(), within)
        await self.reader
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None
        return code

    def terminate(self):
        self.signal(signal.SIGTERM)

    async def kill(self):
        """SIGKILL; the exit code, which is another if it had exited by itself."""
        self.signal(signal.SIGKILL)
        return await self.ended()

    def signal(self, number):
        if self.handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, number)

    async def stop(self):
        """SIGTERM; the exit code, None if it had to be killed."""
        self.terminate()
        return await self.ended_or_killed()

    async def ended_or_killed(self, within=READY):
        """Waits until it exits; the exit code, None if it had to be killed."""
        try:
            return await self.ended(within)
        except asyncio.TimeoutError:
            await self.kill()
            return None
