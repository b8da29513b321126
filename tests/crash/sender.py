"""The independent sender: several connections at once, WeChat's retries, and what was answered 200.

A push counts as answered as soon as the status line of a 200 has arrived, whatever becomes of the connection after that:
WeChat would not push it again.
"""
import asyncio
import time
from collections import Counter, deque

import wechat

LIMIT = 10.0  # seconds for one try; WeChat's own is 5, a busy machine is allowed more


async def push(address, clear):
    """One try; the status, None if there was no answer."""
    writer = None
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(*address), LIMIT)
        writer.write(wechat.request(clear))
        line = await asyncio.wait_for(reader.readline(), LIMIT)
        return int(line.split()[1]) if line.endswith(b"\n") and line.startswith(b"HTTP/") else None
    except (OSError, ValueError, IndexError, asyncio.TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.transport.abort()


class Sender:
    """Keeps `connections` pushes in flight while a relay is up, until `finish`."""

    def __init__(self, rng, connections, rate, crowded):
        self.rng = rng
        self.connections = connections
        self.pause = connections / rate  # between two pushes of a connection, at least
        self.crowded = crowded  # says whether the targets are behind: then nothing new is pushed
        self.seconds = []  # by number: when it was first pushed
        self.answered = {}  # number -> times answered 200
        self.again = deque()  # numbers to push again: not answered, or WeChat did not get the answer
        self.statuses = Counter()
        self.gate = asyncio.Event()
        self.address = None
        self.first_200 = None
        self.finishing = False

    def second_of(self, number):
        return self.seconds[number] if 0 <= number < len(self.seconds) else None

    def open(self, address):
        """A relay is up."""
        self.address = address
        self.first_200 = asyncio.get_running_loop().create_future()
        self.gate.set()

    def close(self):
        """It is down; pushes in flight end by themselves."""
        self.gate.clear()

    def start(self):
        self.tasks = [asyncio.create_task(self._connection()) for _ in range(self.connections)]

    async def finish(self):
        """Pushes what was not answered until it is, then ends; needs a relay that is up."""
        self.finishing = True
        await asyncio.gather(*self.tasks)

    async def cancel(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _connection(self):
        while True:
            await self.gate.wait()
            if self.again:
                number = self.again.popleft()
            elif self.finishing:
                return
            elif self.crowded():
                await asyncio.sleep(0.02)
                continue
            else:
                number = len(self.seconds)
                self.seconds.append(int(time.time()))
            begun = time.monotonic()
            await self._push(number)
            await asyncio.sleep(max(0.0, self.pause - (time.monotonic() - begun)))

    async def _push(self, number):
        status = await push(self.address, wechat.clear_text(number, self.seconds[number]))
        self.statuses[status] += 1
        if status == 200:
            self.answered[number] = self.answered.get(number, 0) + 1
            if not self.first_200.done():
                self.first_200.set_result(time.monotonic())
            # Sometimes WeChat does not get the answer and pushes again: that must be the same event.
            if self.rng.random() < 0.04 and not self.finishing:
                self.again.append(number)
        else:
            self.again.append(number)
