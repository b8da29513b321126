"""The targets of a cluster: as ../crash/targets.py, and each attempt goes into the history, with the replica that made it."""

import asyncio
import itertools
import json
import random
from collections.abc import Callable

from history import History, now
from targets import Connection, Target


class Endpoint(Target):
    """One target. `replicas`: the replicas' names by their addresses. `is_calm`: from now on it takes everything."""

    def __init__(
        self, name: str, history: History, second_of, rng: random.Random, replicas: dict[str, str], **options
    ) -> None:
        super().__init__(name, second_of, **options)
        self.history, self.rng, self.replicas = history, rng, replicas
        self.is_calm = False
        self.numbered = itertools.count(1)

    def choose(self) -> tuple[int | None, float]:
        """The status of an answer, None for none, and the seconds until it."""
        return 200, 0.0

    def body(self, _number: int) -> bytes:
        return b""


class Flaky(Endpoint):
    """Accepts most deliveries, but not all, and some late."""

    def choose(self) -> tuple[int | None, float]:
        dice = self.rng.random()
        if self.is_calm or dice > 0.25:
            return 200, 0.0
        return (500, 0.0) if dice < 0.10 else (None, 0.0) if dice < 0.15 else (200, self.rng.uniform(0.05, 0.5))


class Bot(Endpoint):
    """Replies, to each attempt something else; sometimes late, sometimes too late, sometimes nothing."""

    latest = 1.9  # seconds that a reply takes

    def choose(self) -> tuple[int | None, float]:
        dice = self.rng.random()
        if self.is_calm or dice > 0.40:
            return 200, 0.0
        return (500, 0.0) if dice < 0.03 else (200, self.rng.uniform(0.1, self.latest))

    def body(self, number: int) -> bytes:
        if number % 10 == 6:
            return b""
        text = f"reply {next(self.numbered)} to {number}"
        return json.dumps({"reply": {"msg_type": "text", "content": text}}).encode()


class Recorded(Connection):
    """A connection of a replica to an endpoint."""

    def take(self, headers: dict[str, str], body: bytes) -> None:
        target, begun = self.target, now()
        number = target.note(headers, body)
        status, delay = target.choose()
        peer = self.transport.get_extra_info("peername") or ("?", 0)
        record: dict[str, object] = {
            "target": target.name,
            "number": number,
            "event": headers.get("wxrelay-event-id"),
            "begun": begun,
            "replica": target.replicas.get(peer[0], peer[0]),
            "status": status,
        }
        finish: Callable[[], None] = lambda: self.finish(record)  # noqa: E731
        if delay:
            asyncio.get_running_loop().call_later(delay, finish)
        else:
            finish()

    def finish(self, record: dict) -> None:
        target, status, number = self.target, record["status"], record["number"]
        is_gone = self.transport.is_closing()
        body = target.body(number) if status == 200 and number is not None else b""
        record |= {"ended": now(), "status": None if is_gone else status, "reply": body.decode() or None}
        target.history.note("attempt", **record)
        if is_gone or status is None:
            target.failed += 1
            self.transport.abort()
            return
        if status == 200 and number is not None:
            target.taken[number] += 1
            target.arrived = asyncio.get_running_loop().time()
        else:
            target.failed += 1
        kind = "application/json" if body else "text/plain"
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)
