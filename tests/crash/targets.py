"""The targets, served by the harness itself: two handlers, one of them flaky, and an identity provider.

A target remembers, by the number of the push, the event id it came with and how often it answered 200. What contradicts
itself (two ids for one text, one id for two texts, a text that was never pushed) goes into `wrong`.
"""
import asyncio
import json
from collections import Counter

from wechat import clear_text, number_of, unseal

KEPT = 20  # contradictions kept word for word; the rest is counted


class Target:
    """One endpoint.

    `second_of(number)` says when a number was first pushed, None if never. `mood(number)` says what it does with an
    attempt: None (takes it), "500", "cut", "late" or "hang". `told(number, event)` hears of every attempt it takes.
    """

    def __init__(self, name, second_of, mood=lambda _: None, sealed=False, told=lambda *_: None):
        self.name = name
        self.second_of = second_of
        self.mood = mood
        self.sealed = sealed
        self.told = told
        self.ids = {}  # number -> event id
        self.numbers = {}  # event id -> number
        self.taken = Counter()  # number -> times answered 200
        self.failed = 0  # attempts answered with anything else, or not at all
        self.wrong = []
        self.arrived = 0.0  # when the last attempt was answered 200, by the loop's clock

    async def start(self, host="127.0.0.1", connection=None):
        """`connection`: the class of its connections."""
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: (connection or Connection)(self), host, 0, backlog=512)
        self.port = self.server.sockets[0].getsockname()[1]

    def end(self):
        self.server.close()

    def repeats(self):
        return sum(self.taken.values()) - len(self.taken)

    def note(self, headers, body):
        """Records an attempt; its number."""
        event = headers.get("wxrelay-event-id")
        try:
            if self.sealed:
                clear = unseal(body)
            else:
                told = json.loads(body)
                clear = told["xml"]
                if told["id"] != event:
                    self.contradict(f"id {told['id']} in the body, {event} in the header")
        except (ValueError, KeyError, AttributeError, IndexError) as error:
            self.contradict(f"{event}: unreadable: {error!r}")
            return None
        number = number_of(clear)
        second = None if number is None else self.second_of(number)
        if second is None or clear != clear_text(number, second):
            self.contradict(f"{event}: its text is not what was pushed: {clear[:300]!r}")
            return None
        if self.ids.setdefault(number, event) != event:
            self.contradict(f"push {number} came as {self.ids[number]} and as {event}")
        if self.numbers.setdefault(event, number) != number:
            self.contradict(f"{event} was push {self.numbers[event]} and push {number}")
        return number

    def contradict(self, what):
        self.wrong.append(f"{self.name}: {what}" if len(self.wrong) < KEPT else None)


def flaky(rng):
    """The behaviour of a target that accepts most deliveries, but not all, and some late."""
    def mood(_):
        dice = rng.random()
        return "500" if dice < 0.15 else "cut" if dice < 0.20 else "late" if dice < 0.30 else None
    return mood


class Connection(asyncio.Protocol):
    """HTTP/1.1 with Content-Length, as the relay uses it; one request after the other."""

    def __init__(self, target):
        self.target = target
        self.buffer = bytearray()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            lines = self.buffer[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            whole = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < whole:
                return
            body = bytes(self.buffer[end + 4:whole])
            del self.buffer[:whole]
            self.take(headers, body)

    def take(self, headers, body):
        target = self.target
        number = target.note(headers, body)
        mood = target.mood(number)
        if mood == "cut":
            target.failed += 1
            self.transport.abort()
        elif mood == "hang":
            target.failed += 1
        elif mood == "late":
            asyncio.get_running_loop().call_later(0.1, self.answer, number, 200)
        else:
            self.answer(number, 500 if mood == "500" else 200)

    def answer(self, number, status):
        if self.transport.is_closing():
            return
        target = self.target
        if status == 200 and number is not None:
            target.taken[number] += 1
            target.told(number, target.ids[number])
            target.arrived = asyncio.get_running_loop().time()
        else:
            target.failed += 1
        self.transport.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
