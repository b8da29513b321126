"""The replicas, each a relay on its machine, and HAProxy in front of them."""

import asyncio
import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import wechat
from history import History
from network import Machine, end_with_parent
from relay import Ended, Relay

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
TIMEOUT = 5  # seconds of an attempt; others take over after that and 7 s
STARTS = 60
ADMIN = "token-of-the-cluster-tests"

CONFIG = """\
[server]
listen = ["{address}:{push}"]
drain = "8s"
[admin]
listen = "{address}:{admin}"
token = "{token}"
[queue]
type = "postgres"
url = "{url}"
tls = {{ ca = "{ca}" }}
standby = "warn"
replica = "{name}"
{spool}
[log]
level = "warn,wxrelay::app=info"
[accounts.shop]
path = "{path}"
app_id = "{app_id}"
token = "{wechat_token}"
encoding_aes_key = "{key}"
mode = "secure"
{window}
[[accounts.shop.routes]]
match = {{ event = "SCAN" }}
to = ["login", "ordered", "bot"]
reply = "bot"
[[accounts.shop.routes]]
otherwise = true
to = ["crm", "ordered"]
reply = {{ text = "thanks" }}
[targets.login]
role = "identity"
format = "raw"
expire_after = "24h"
{login}
[targets.crm]
format = "json"
{crm}
[targets.ordered]
format = "json"
order = "per_user"
{ordered}
[targets.bot]
format = "json"
{bot}
"""
# Enough retries that no delivery becomes a dead letter by chance, or while its target is cut off.
RETRY = ["100ms"] * 20 + ["500ms"] * 200

# Each try goes to another replica than the last one. Without a ready replica a push is held by any.
BALANCER = """\
global
    stats timeout 10s
defaults
    mode http
    timeout client 10s
    timeout connect 1s
    timeout server 6s
    timeout check 1s
    timeout http-request 5s
    option redispatch 1
    option abortonclose
    retries 2
    http-reuse always
    balance roundrobin
frontend wechat
    bind {address}:{port}
    use_backend any if {{ nbsrv(ready) eq 0 }}
    default_backend ready
backend ready
    retry-on conn-failure empty-response 503
    option httpchk GET /readyz/direct
    default-server check inter 1s fall 2 rise 1
    http-response set-header x-relay %s
{checked}
backend any
    retry-on conn-failure empty-response
    http-response set-header x-relay %s
{unchecked}
"""


def targets_of(number: int) -> tuple[str, ...]:
    """Where the routes send a push."""
    return ("login", "ordered", "bot") if wechat.is_scan(number) else ("crm", "ordered")


class Replica:
    """One replica: its machine, its configuration, and the process that runs."""

    def __init__(self, machine: Machine, folder: Path, binary: Path, ports: tuple[int, int], history: History) -> None:
        self.machine, self.binary, self.history = machine, binary, history
        self.name = machine.name
        self.push, self.admin = ports
        self.config = folder / f"{self.name}.toml"
        self.spool = folder / f"{self.name}.spool"
        self.relay: Any = None
        self.offset = 0  # seconds that its clock is ahead
        self.ends: list[str] = []  # what it did of its own accord

    def configure(
        self, url: str, authority: Path, ways: dict[str, tuple[str, int]], window: int, spools: bool
    ) -> None:
        """`ways`: the targets' addresses. `window`: the seconds of the reply window, 0 for none."""
        self.window = window
        timeouts = {"bot": window + 1 if window else TIMEOUT}
        tables = {
            name: f'url = "http://{host}:{port}/"\ntimeout = "{timeouts.get(name, TIMEOUT)}s"\nretry = {json.dumps(RETRY)}'
            for name, (host, port) in ways.items()
        }
        self.config.write_text(
            CONFIG.format(
                address=self.machine.address,
                push=self.push,
                admin=self.admin,
                token=ADMIN,
                url=url,
                ca=authority,
                name=self.name,
                spool=f'spool = "{self.spool}"' if spools else "",
                path=wechat.PATH,
                app_id=wechat.APP_ID,
                wechat_token=wechat.TOKEN,
                key=wechat.KEY,
                window=f'reply_window = "{window}s"\nreply_window_failures = "1000/1m"' if window else "",
                **tables,
            )
        )
        self.config.chmod(0o600)

    async def start(self) -> None:
        environment = {}
        if self.offset:
            environment = {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME": f"{self.offset:+d}",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        prefix = ["setpriv", "--pdeathsig", "KILL", *self.machine.prefix]  # it does not outlive this process
        self.relay = Relay(self.binary, self.config, environment, prefix, self.note)
        await self.relay.start()
        self.history.note("start", replica=self.name, offset=self.offset, window=self.window)

    async def live(self) -> None:
        """Starts it, again and again as a supervisor does: there may be no primary at the moment."""
        for _ in range(STARTS):
            await self.start()
            try:
                await self.relay.ready()
                return
            except (Ended, asyncio.TimeoutError):
                await self.relay.kill()
            told = " ".join(self.relay.tail)
            self.note({"level": "ERROR", "message": f"not started: {told}"})
            # Refused values (class 23) are never a matter of who is away.
            if "SQLSTATE 23" in told:
                self.ends.append(f"{self.name}: {told}")
            await asyncio.sleep(0.5)
        self.ends.append(f"{self.name} cannot be started: {self.relay.tail[-2:]}")

    async def kill(self) -> None:
        code = await self.relay.kill()
        self._expect(code, {-signal.SIGKILL})

    async def stop(self, within: float) -> int | None:
        """SIGTERM; the exit code, None if it had to be killed."""
        self.relay.terminate()
        code = await self.relay.ended_or_killed(within)
        # 74: PostgreSQL stores nothing at the moment, so what was under way could not be returned.
        self._expect(code, {0, 74})
        return code

    def note(self, line: dict[str, Any]) -> None:
        """A line of its log."""
        if line.get("level") not in ("INFO", "info"):
            names = {"replica": "of", "kind": "log_kind", "at": "log_at"}  # which the history has for itself
            self.history.note(
                "log", **{names.get(key, key): value for key, value in line.items()} | {"replica": self.name}
            )

    def signal(self, number: int) -> None:
        self.relay.signal(number)

    def is_alive(self) -> bool:
        return self.relay is not None and self.relay.is_alive()

    def _expect(self, code: int | None, wanted: set[int]) -> None:
        if code not in wanted:
            self.ends.append(f"{self.name}: exit code {code}, wanted {sorted(wanted)}: {self.relay.tail[-2:]}")


class Balancer:
    """HAProxy, which tries a push again at another replica where that is safe."""

    def __init__(self, machine: Machine, folder: Path, port: int) -> None:
        self.machine, self.port = machine, port
        self.config = folder / "haproxy.cfg"
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, ways: list[tuple[str, tuple[str, int], tuple[str, int]]]) -> None:
        """`ways`: a replica's name, its address for pushes, and the one of its readiness."""
        unchecked = [f"    server {name} {push[0]}:{push[1]}" for name, push, _ in ways]
        checked = [f"{line} addr {host} port {port}" for line, (_, _, (host, port)) in zip(unchecked, ways)]
        text = BALANCER.format(
            address=self.machine.address, port=self.port, checked="\n".join(checked), unchecked="\n".join(unchecked)
        )
        self.config.write_text(text)
        command = [*self.machine.prefix, str(haproxy()), "-db", "-q", "-f", str(self.config)]
        self.child = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=end_with_parent
        )

    async def listening(self) -> None:
        """Returns when it accepts connections."""
        while self.child is not None and self.child.poll() is None:
            try:
                _, writer = await asyncio.open_connection(self.machine.address, self.port)
                writer.close()
                return
            except OSError:
                await asyncio.sleep(0.05)
        raise RuntimeError("HAProxy does not listen")

    def end(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()


def haproxy() -> str | None:
    """HAProxy; not everybody has /usr/sbin on the path."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


def has_faketime() -> bool:
    return FAKETIME.exists()
