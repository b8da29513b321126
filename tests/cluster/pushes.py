"""WeChat in front of a cluster: each user's pushes one after another, three tries of each, and what was answered.

A try ends after 5 s; the next one begins 5 s after the last, with the same text. Some pushes that were answered are pushed
again, as when WeChat did not get the answer, and some twice at once: HAProxy's own retries do that.
"""

import asyncio
import random
import re
import time

import wechat
from history import History, now

WAIT = 5.0  # seconds that WeChat waits for an answer, and between the beginnings of two tries
TRIES = 3
STEP = 997  # between the numbers of a user's pushes: see wechat.clear_text


async def push(address: tuple[str, int], clear: str) -> tuple[int | None, str, str]:
    """One try: the status, None if there is no whole answer; the reply, opened; the replica that answered."""
    writer = None
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(*address), WAIT)
        writer.write(wechat.request(clear))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        relay = re.search(rb"(?i)\r\nx-relay: *([^\r]+)", head)
        if length and len(body) < int(length.group(1)):
            return None, "", ""
        return status, opened(body) if status == 200 else "", relay.group(1).decode() if relay else ""
    except (OSError, ValueError, IndexError):
        return None, "", ""
    finally:
        if writer is not None:
            writer.transport.abort()


def opened(body: bytes) -> str:
    """A reply in clear; empty for `success`."""
    return "" if body == b"success" else wechat.unseal(body)


class Pushes:
    """Keeps pushing for `users` users until `finish`."""

    def __init__(self, history: History, rng: random.Random, users: int, rate: float) -> None:
        self.history, self.rng = history, rng
        self.users = users
        self.pause = users / rate
        self.seconds: dict[int, int] = {}
        self.answered: set[int] = set()
        self.given_up: set[int] = set()
        self.relays: set[str] = set()  # that answered
        self.tries = 0
        self.address = ("", 0)
        self.is_finishing = False
        self.last_200 = now()
        self.others: set[asyncio.Task] = set()

    def second_of(self, number: int) -> int | None:
        return self.seconds.get(number)

    def start(self, address: tuple[str, int]) -> None:
        self.address = address
        self.tasks = [asyncio.create_task(self._user(user)) for user in range(self.users)]

    async def finish(self) -> None:
        """Begins no push any more; returns when all are answered or given up."""
        self.is_finishing = True
        await asyncio.gather(*self.tasks)
        await asyncio.gather(*self.others)

    async def cancel(self) -> None:
        tasks = [*self.tasks, *self.others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _user(self, user: int) -> None:
        await asyncio.sleep(self.rng.uniform(0, self.pause))
        number = user
        while not self.is_finishing:
            begun = now()
            self.seconds[number] = int(time.time())
            await self._push(number)
            number += STEP
            await asyncio.sleep(max(0.0, self.pause * self.rng.uniform(0.5, 1.5) - (now() - begun)))

    async def _push(self, number: int) -> None:
        if self.rng.random() < 0.05:
            self._beside(number, self.rng.uniform(0.0, 0.5))
        for _ in range(TRIES):
            begun = now()
            if await self.attempt(number) == 200:
                if self.rng.random() < 0.05:
                    self._beside(number, self.rng.choice([0.0, 0.2, WAIT]))
                return
            await asyncio.sleep(max(0.0, begun + WAIT - now()))
        if number not in self.answered:
            self.given_up.add(number)
            self.history.note("given-up", number=number)

    def _beside(self, number: int, delay: float) -> None:
        """One more try of the same push, beside its user's next ones."""

        async def again() -> None:
            await asyncio.sleep(delay)
            await self.attempt(number)

        task = asyncio.create_task(again())
        self.others.add(task)
        task.add_done_callback(self.others.discard)

    async def attempt(self, number: int) -> int | None:
        """One try; the status."""
        begun = now()
        try:
            clear = wechat.clear_text(number, self.seconds[number])
            status, reply, relay = await asyncio.wait_for(push(self.address, clear), WAIT)
        except asyncio.TimeoutError:
            status, reply, relay = None, "", ""
        self.tries += 1
        if status == 200:
            self.answered.add(number)
            self.relays.add(relay)
            self.last_200 = now()
        self.history.note("try", number=number, begun=begun, ended=now(), status=status, reply=reply, relay=relay)
        return status
