"""kill -9 of the primary under load, and its synchronous standby is promoted: `failover.py --rounds N`.

The URL names both servers. After a round the killed one is built anew as the standby. Each second round the standby is
killed a second before the primary, and started again to be promoted: what was answered meanwhile would be missing.

`--spool`: the relay has a spool, so every push is answered all the time.
`--control`: the standby is asynchronous, and the checker must find that pushes are missing.
"""
import asyncio
import sys
import time

from load import Load, expect, expect_that, main, percentile, wait_for
from ledger import Ledger
from rig import Failure

SLOWEST = 2.5  # seconds that 99 of 100 pushes may take with a spool


class Failover(Load):
    def __init__(self, arguments, folder):
        super().__init__(arguments, folder)
        self.spool = folder / "spool" if arguments.spool else None

    def queue(self):
        return super().queue() + (f'\nspool = "{self.spool}"' if self.spool else "")

    def pending(self):
        spooled = len(Ledger(self.spool).numbers) if self.spool else 0
        return spooled + super().pending()

    def prepare(self):
        self.pair()
        if self.arguments.control:
            self.server.set("synchronous_standby_names", "")

    async def meet(self, checks):
        self.gaps, self.lost = [], []
        for number in range(1 if self.arguments.control else self.arguments.rounds):
            await self.round(checks, number)
        if self.spool:
            tries = self.sender.tries
            slow = percentile([ended - begun for begun, ended, _ in tries], 0.99)
            unanswered = sum(1 for entry in tries if not entry[2])
            print(f"{len(tries)} tries, {unanswered} unanswered, p99 {slow:.2f} s", flush=True)
            checks.run("with a spool every try is answered 200", lambda: expect(unanswered, 0, "tries without a 200"))
            checks.run(f"99 of 100 within {SLOWEST} s", lambda: expect_that(slow <= SLOWEST, f"{slow:.2f} s"))
        elif not self.arguments.control:
            slow = max(self.gaps)
            checks.run("pushes are answered within 1 s of each promotion",
                       lambda: expect_that(slow < self.arguments.within, f"{slow:.2f} s"))

    async def round(self, checks, number):
        primary = self.server
        standby = next(server for server in self.servers if server is not primary)
        await self.load(2.0)
        behind = self.arguments.control or number % 2 == 1
        if behind:
            await asyncio.to_thread(standby.kill)
            alone = time.monotonic()
            await self.load(1.0)
            answered = len([entry for entry in self.sender.answers(alone) if entry[0] > alone])
            print(f"round {number + 1}: the standby is killed first; {answered} pushes answered by the primary alone", flush=True)
            if not self.arguments.control and not self.spool:
                checks.run(f"round {number + 1}: without the standby no push is answered", lambda: expect(answered, 0, "answers"))
        await asyncio.to_thread(primary.kill)
        killed = time.monotonic()
        before = set() if self.spool else set(self.sender.answered)
        if behind:
            await asyncio.to_thread(standby.start)
        await self.load(self.arguments.away)
        await asyncio.to_thread(standby.promote)
        promoted = time.monotonic()
        self.server = standby
        found = await asyncio.to_thread(self.stored)
        missing = found.missing(before)
        self.lost += missing
        gap = await self.first_answer(promoted, 60)
        print(f"round {number + 1}: promoted {promoted - killed:.2f} s after the kill, first 200 "
              f"{'never' if gap is None else f'{gap:.2f} s'} after that; {len(before)} answered before, {len(missing)} missing; "
              f"{self.unanswered(killed)} tries without a 200 since the kill", flush=True)
        if gap is None:
            raise Failure("no push was answered for 60 s after the promotion")
        self.gaps.append(gap)
        if not self.arguments.control:
            await asyncio.to_thread(primary.follow, standby)
            await asyncio.to_thread(standby.set, "synchronous_standby_names", primary.name)
            await asyncio.to_thread(wait_for, standby.has_standby, "a synchronous standby")

    def unanswered(self, since):
        return sum(1 for _, ended, answered in self.sender.tries if ended >= since and not answered)

    def check(self, checks, code):
        if self.arguments.control:
            missing = self.found.missing(self.sender.answered)
            checks.run("the control loses pushes, and the checker finds them",
                       lambda: expect_that(self.lost and missing, "nothing is missing") or f"{len(missing)} missing at the end")
        else:
            super().check(checks, code)


def options(parser):
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--within", type=float, default=1.0, help="seconds from a promotion to the first 200, at most")
    parser.add_argument("--away", type=float, default=0.0, help="seconds from the kill to the promotion")
    parser.add_argument("--spool", action="store_true")
    parser.add_argument("--control", action="store_true")


if __name__ == "__main__":
    sys.exit(main(Failover, __doc__, options, lambda arguments: 150 + (30 + arguments.away) * arguments.rounds))
