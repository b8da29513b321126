"""kill -9 of one of two replicas that has deliveries under way at every target: `takeover.py --rounds N`.

The other one takes them over, 12 s later for a login and 22 s later for a handler, and answers pushes all the time.
"""
import asyncio
import sys
import time

import postgres
from load import Load, Relay, expect_that, main, targets_of, write_config

LIMITS = {"login": 12.0, "crm": 22.0, "flaky": 22.0}  # seconds: 5, the target's timeout (5 or 15), and 2
LATE = 1.0  # seconds that a busy machine may add


class Takeover(Load):
    def prepare(self):
        self.server = postgres.Server().create()
        self.servers = [self.server]

    async def meet(self, checks):
        self.moods = {target.name: target.mood for target in self.targets}
        self.moments = {target.name: {} for target in self.targets}
        for target in self.targets:
            target.told = lambda number, _, of=self.moments[target.name]: of.setdefault(number, time.monotonic())
        slowest = {name: 0.0 for name in LIMITS}
        for number in range(self.arguments.rounds):
            for name, seconds in (await self.round(number + 1)).items():
                slowest[name] = max(slowest[name], seconds)
        for name, limit in LIMITS.items():
            checks.run(f"what was under way to {name} goes on within {limit:.0f} s",
                       lambda name=name, limit=limit: expect_that(0 < slowest[name] <= limit + LATE, f"{slowest[name]:.2f} s"))

    async def round(self, number):
        """Kills the replica that pushes go to; by target the seconds until the last delivery that it had under way."""
        config = self.folder / f"{number}.toml"
        write_config(config, self.queue() + f'\nreplica = "r{number}"', self.targets)
        other = Relay(self.arguments.binary, config)
        await other.start()
        address = await other.ready()
        await self.load(2.0)
        for target in self.targets:
            target.mood = lambda _: "hang"
        await self.load(1.0)
        killed, old = time.monotonic(), self.process
        await old.kill()
        self.sender.address, self.process = address, other
        under_way = {target.name: self.sent_to(target) - set(target.taken) for target in self.targets}
        for target in self.targets:
            target.mood = self.moods[target.name]
        gap = await self.first_answer(killed, 60)
        while any(numbers - set(self.moments[name]) for name, numbers in under_way.items()):
            if time.monotonic() > killed + 60:
                break
            await asyncio.sleep(0.05)
        seconds = {name: max((self.moments[name].get(push, killed + 60) for push in numbers), default=killed) - killed
                   for name, numbers in under_way.items()}
        print(f"round {number}: first 200 of the other one {gap or -1:.2f} s after the kill; "
              + ", ".join(f"{name} {len(under_way[name])} under way, the last delivered after {took:.2f} s"
                          for name, took in seconds.items()), flush=True)
        return seconds

    def sent_to(self, target):
        """What was answered and goes to a target."""
        return {number for number in self.sender.answered if target.name in targets_of(number)}


def options(parser):
    parser.add_argument("--rounds", type=int, default=1)


if __name__ == "__main__":
    sys.exit(main(Takeover, __doc__, options, lambda arguments: 120 + 40 * arguments.rounds))
