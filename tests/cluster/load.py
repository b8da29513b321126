"""A relay on PostgreSQL under load: what the scripts here have in common.

Sender, targets, the relay's process and the comparison at the end are those of ../crash; only the store is another.
"""
import argparse
import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

CRASH = Path(__file__).resolve().parent.parent / "crash"
# After this folder, so that a script here is never taken for one of the same name there.
sys.path.append(str(CRASH))

import postgres  # noqa: E402
from relay import Relay, targets_of, write_config  # noqa: E402, F401
from rig import Checks, Failure, expect, expect_that, parsed  # noqa: E402, F401
from lives import Run  # noqa: E402
from sender import Sender  # noqa: E402
from stored import Stored  # noqa: E402

TAKEOVER = 22.0  # seconds until the deliveries of a killed process go on
HELD = 4.4  # seconds that a push is held while PostgreSQL is away
PENDING = "SELECT count(*) FROM wxrelay.delivery WHERE state = 0"


class TimedSender(Sender):
    """Also knows when each try began and ended."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.tries = []  # (begun, ended, whether it was answered 200)

    async def _push(self, number):
        begun, before = time.monotonic(), self.answered.get(number, 0)
        await super()._push(number)
        self.tries.append((begun, time.monotonic(), self.answered.get(number, 0) > before))

    async def once(self):
        """One push beside the others; whether it was answered 200 in its first try."""
        number = len(self.seconds)
        self.seconds.append(int(time.time()))
        await self._push(number)
        return number in self.answered

    def answers(self, since, until=float("inf")):
        """The tries that were answered 200 between two moments."""
        return [entry for entry in self.tries if entry[2] and since <= entry[1] < until]


class Load(Run):
    """One run over PostgreSQL. `self.server` is the primary; `go` is what a script does beside."""

    standby = "none"
    quiet = 60.0

    def __init__(self, arguments, folder):
        super().__init__(arguments, folder)
        self.servers = []
        self.server = None
        self.process = None
        self.sender.__class__ = TimedSender
        self.sender.tries = []

    def queue(self):
        return (f'type = "postgres"\nurl = "{postgres.url(*self.servers)}"\ntls = "off"\nstandby = "{self.standby}"')

    def stored(self):
        return Stored(self.server)

    def pending(self):
        return int(self.server.sql(PENDING))

    async def go(self, checks):
        await asyncio.to_thread(self.prepare)
        for target in self.targets:
            await target.start()
        write_config(self.config, self.queue(), self.targets)
        self.sender.start()
        self.process = self.relay()
        await self.process.start()
        try:
            self.sender.open(await self.process.ready())
            await asyncio.wait_for(asyncio.shield(self.sender.first_200), 30)
            await self.meet(checks)
            code = await self.deliver_all(self.process)
        finally:
            with contextlib.suppress(Exception):
                await self.process.kill()
            await self.sender.cancel()
            for target in self.targets:
                target.end()
        self.figures()
        self.check(checks, code)

    def prepare(self):
        """Starts the servers."""
        self.server = postgres.Server().create()
        self.servers = [self.server]

    async def meet(self, checks):
        """What happens under load."""
        raise NotImplementedError

    def pair(self, settings=()):
        """A primary and its synchronous standby."""
        a, b = postgres.Server("a", settings), postgres.Server("b", settings)
        self.servers = [a, b]
        a.create()
        b.follow(a)
        a.set("synchronous_standby_names", "b")
        self.server = a
        wait_for(a.has_standby, "a synchronous standby")
        return a, b

    def end(self):
        for server in self.servers:
            server.end()

    async def first_answer(self, since, within):
        """The seconds from a moment to the first 200 of a push after it; None if there was none in time."""
        while time.monotonic() < since + within:
            found = [ended for _, ended, _ in self.sender.answers(since)]
            if found:
                return min(found) - since
            await asyncio.sleep(0.01)
        return None

    async def load(self, seconds):
        """Goes on for a while; the moments of its beginning and end."""
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        return begun, time.monotonic()


def wait_for(holds, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main(kind, description, options=lambda _: None, limit=lambda _: 300, rate=300.0):
    """Runs a script here: `kind` is its Load."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--rate", type=float, default=rate, help="pushes a second, at most")
    options(parser)
    arguments = parsed(parser)
    if postgres.programs() is None:
        return skip(f"PostgreSQL {postgres.OLDEST} or newer is not installed")
    arguments.kills = getattr(arguments, "kills", 0)
    checks = Checks()
    folder = Path(tempfile.mkdtemp(prefix="wxrelay-cluster-"))
    run = kind(arguments, folder)
    seconds = limit(arguments)
    try:
        checks.run(f"the run ends within {seconds} s", lambda: asyncio.run(asyncio.wait_for(run.go(checks), seconds)))
        if checks.failed and run.process is not None:
            print("the relay's last lines: " + "\n".join(run.process.tail))
    finally:
        run.end()
        shutil.rmtree(folder)
    return run.judge(checks) if hasattr(run, "judge") else checks.close()


def skip(why):
    """A visible line; in CI nothing is skipped."""
    print(f"skipped: {why}", flush=True)
    return 1 if os.environ.get("CI") else 0
