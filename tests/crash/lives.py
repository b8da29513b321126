"""A run that repeats lives of the relay over one store, under load, and compares the lists at the end."""
import asyncio
import random
import statistics
import sys
import time

import ledger
from relay import Ended, Relay, embedded, write_config
from rig import expect, expect_that
from sender import Sender
from targets import Target, flaky

BEHIND = 2000  # deliveries that the targets may be behind before the sender holds back


def plan(rng, kills):
    """The moments: (when, seconds). `load`: after the first 200; `start`: after exec; `drain`: after SIGTERM under load."""
    for _ in range(kills):
        when = rng.choices(["load", "start", "drain"], [8, 1, 1])[0]
        yield when, rng.uniform(0, {"load": 0.4, "start": 0.04, "drain": 0.03}[when])


class Run:
    """One run: the relay's processes over one store."""

    quiet = 30.0  # seconds without a delivery after which waiting for the rest is given up

    def __init__(self, arguments, folder):
        self.arguments = arguments
        self.folder = folder
        self.store = folder / "store"
        self.config = folder / "config.toml"
        rng = random.Random(arguments.seed)
        self.kill_rng, load_rng, flaky_rng = (random.Random(rng.random()) for _ in range(3))
        self.sender = Sender(load_rng, arguments.connections, arguments.rate, self.crowded)
        self.targets = [Target("login", self.sender.second_of, sealed=True), Target("crm", self.sender.second_of),
                        Target("flaky", self.sender.second_of, mood=flaky(flaky_rng))]
        self.restarts = []  # seconds from exec to the first 200
        self.kills = 0
        self.ends = []  # what the relay did of its own accord
        self.begun = self.shown = time.monotonic()

    def queue(self):
        """The table [queue] of the configuration."""
        return embedded(self.store)

    def stored(self):
        return ledger.Ledger(self.store)

    def crowded(self):
        return 2 * len(self.sender.answered) - sum(len(target.taken) for target in self.targets) > BEHIND

    def relay(self):
        return Relay(self.arguments.binary, self.config)

    async def go(self, checks):
        for target in self.targets:
            await target.start()
        write_config(self.config, self.queue(), self.targets)
        self.sender.start()
        try:
            for when, moment in plan(self.kill_rng, self.arguments.kills):
                await self.life(when, moment)
                self.progress()
            code = await self.last_life()
        finally:
            await self.sender.cancel()
            for target in self.targets:
                target.end()
        if sys.stderr.isatty():
            print(file=sys.stderr)
        self.figures()
        self.check(checks, code)

    async def life(self, when, moment):
        """From start to kill."""
        relay = self.relay()
        begun = time.monotonic()
        await relay.start()
        try:
            if when == "start":
                await asyncio.sleep(moment)
            else:
                self.sender.open(await relay.ready())
                first = await asyncio.wait_for(asyncio.shield(self.sender.first_200), 30)
                self.restarts.append(first - begun)
                if when == "load":
                    await asyncio.sleep(moment)
                else:
                    await asyncio.sleep(0.05)
                    relay.terminate()
                    await asyncio.sleep(moment)
        except (Ended, asyncio.TimeoutError) as error:
            self.ends.append(f"kill {self.kills + 1}, {when}: {error!r}")
        finally:
            self.sender.close()
            code = await relay.kill()
        self.kills += 1
        if code not in ({-9, 0} if when == "drain" else {-9}):
            self.ends.append(f"kill {self.kills}, {when} + {moment:.3f} s: exit code {code}, {relay.tail}")

    async def last_life(self):
        """Restarts it, delivers everything, stops it; the exit code."""
        relay = self.relay()
        await relay.start()
        self.sender.open(await relay.ready())
        return await self.deliver_all(relay)

    async def deliver_all(self, relay):
        """Lets it deliver what was answered, and stops it; the exit code."""
        await self.sender.finish()
        loop = asyncio.get_running_loop()
        self.last = max(target.arrived for target in self.targets), loop.time()
        while await asyncio.to_thread(self.pending):
            newest = max(target.arrived for target in self.targets)
            if newest != self.last[0]:
                self.last = newest, loop.time()
            if loop.time() - self.last[1] > self.quiet:
                print(f"\nno delivery for {self.quiet:.0f} s, and some are pending", flush=True)
                break
            self.progress()
            await asyncio.sleep(0.2)
        return await relay.stop()

    def pending(self):
        return ledger.audit(self.arguments.binary, self.config)[1].get("pending", 1)

    def progress(self):
        """A progress line: overwritten on a terminal, printed every few seconds elsewhere."""
        terminal, now = sys.stderr.isatty(), time.monotonic()
        if now - self.shown < (0.2 if terminal else 10):
            return
        self.shown = now
        text = (f"{self.kills}/{self.arguments.kills} kills, {len(self.sender.answered)} answered, "
                f"{sum(len(target.taken) for target in self.targets)} delivered, {now - self.begun:.0f} s")
        print(f"\r{text} " if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)

    def figures(self):
        found = self.stored()
        tries = sum(self.sender.statuses.values())
        print(f"kills {self.kills} in {time.monotonic() - self.begun:.0f} s")
        print(f"answered {len(self.sender.answered)} of {len(self.sender.seconds)} pushes in {tries} tries, "
              f"statuses {dict(self.sender.statuses)}")
        print(f"missing {len(found.missing(self.sender.answered))}")
        print("repeats " + ", ".join(f"{target.name} {target.repeats()}" for target in self.targets)
              + f"; attempts that a target failed {sum(target.failed for target in self.targets)}")
        if self.restarts:
            times = sorted(1000 * seconds for seconds in self.restarts)
            print(f"restart to first 200: p50 {statistics.median(times):.0f} ms, max {times[-1]:.0f} ms")
        self.found = found

    def check(self, checks, code):
        audited = ledger.audit(self.arguments.binary, self.config)
        for name, check in ledger.checks(self.found, audited, self.sender, self.targets):
            checks.run(name, check)
        checks.run("the relay never exited by itself", lambda: expect_that(not self.ends, "; ".join(self.ends[:5])))
        checks.run("SIGTERM ended it with exit code 0", lambda: expect(code, 0, "exit code"))
        others = {status: count for status, count in self.sender.statuses.items() if status not in (200, 503, None)}
        checks.run("pushes were answered 200 or 503, or not at all", lambda: expect(others, {}, "other answers"))
