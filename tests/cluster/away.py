"""PostgreSQL is stopped for 3 s and for 8 s under load, frozen (SIGSTOP) for 8 s, and a demoted primary comes back
read-only: `away.py`.

Pushes are held, then refused with 503. Readiness says `store-away` after 5 s, liveness stays, and the same process goes
on when PostgreSQL is back.
"""
import asyncio
import functools
import sys
import time

from load import HELD, Load, expect, expect_that, main, wait_for

SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'wxrelay'"
MOST = 10  # sessions that a relay has


class Away(Load):
    def prepare(self):
        self.pair()

    async def meet(self, checks):
        a, b = self.servers
        await self.load(1.0)
        for seconds in (3.0, 8.0):
            await self.outage(checks, f"away for {seconds:.0f} s", seconds, functools.partial(self.server.stop, "fast"), self.server.start)
        await self.outage(checks, "frozen for 8 s", 8.0, self.server.freeze, self.server.thaw)
        checks.run("the sessions that were left in the frozen server end", lambda: wait_for(
            lambda: 0 < int(self.server.sql(SESSIONS)) <= MOST, f"at most {MOST} sessions"))
        await self.demotion(checks, a, b)

    async def outage(self, checks, name, seconds, stop, start):
        """Stopped as by an administrator, or frozen with all its sessions, and started again."""
        begun = time.monotonic()
        await asyncio.to_thread(stop)
        stopped, words, lives, refused = time.monotonic(), {}, set(), self.sender.statuses[503]
        while time.monotonic() < stopped + seconds:
            words.setdefault(await self.process.readiness(), time.monotonic() - begun)
            lives.add(await self.process.ask("/livez"))
            await asyncio.sleep(0.1)
        # The others come in waves of HELD seconds, and a wave may end just before it is back. This one waits the least.
        late = asyncio.create_task(self.sender.once())
        await asyncio.to_thread(start)
        back = time.monotonic()
        gap = await self.first_answer(back, 60)
        await self.load(1.0)
        refused = self.sender.statuses[503] - refused
        held = [(end - start, is_answered) for start, end, is_answered in self.sender.tries if start < back and end > stopped]
        answered = sum(is_answered for _, is_answered in held)
        longest = max(took for took, _ in held)
        print(f"{name} ({back - stopped:.1f} s until it goes on): {refused} times 503, {answered} held and "
              f"answered, longest try {longest:.2f} s; readiness {words}; first 200 {gap or -1:.2f} s after that", flush=True)
        checks.run(f"{name}: pushes are answered again", lambda: expect_that(gap is not None, "none in 60 s"))
        checks.run(f"{name}: liveness stays", lambda: expect(lives, {"ok"}, "/livez"))
        checks.run(f"{name}: a push is held no longer than WeChat waits", lambda: expect_that(longest < 5.0, f"{longest:.2f} s"))
        is_answered = await late
        checks.run(f"{name}: a push that the outage leaves enough time is answered", lambda: expect_that(
            is_answered, "a push begun before PostgreSQL was started was not"))
        if seconds > HELD:
            checks.run(f"{name}: then they are refused", lambda: expect_that(refused > 0, "none was"))
            checks.run(f"{name}: readiness says store-away after 5 s", lambda: expect_that(
                5.0 <= words.get("store-away", 0) < 7.0, f"{words}"))
        else:
            checks.run(f"{name}: readiness does not", lambda: expect_that("store-away" not in words, f"{words}"))
        now, until = None, time.monotonic() + 10
        while now != "ready" and time.monotonic() < until:
            now = await self.process.readiness()
        checks.run(f"{name}: it is ready again", lambda: expect(now, "ready", "/readyz"))

    async def demotion(self, checks, a, b):
        """The first server of the URL lives on, read-only, with the relay's sessions; the other one is promoted."""
        await asyncio.to_thread(a.set, "default_transaction_read_only", "on")
        await asyncio.to_thread(b.promote)
        promoted = time.monotonic()
        self.server = b
        gap = await self.first_answer(promoted, 60)
        print(f"read-only primary: first 200 {gap or -1:.2f} s after the promotion", flush=True)
        checks.run("the primary becomes read-only: pushes are answered by the promoted one",
                   lambda: expect_that(gap is not None, "none in 60 s"))
        # It is stopped and comes back, still read-only and first in the URL.
        await asyncio.to_thread(a.stop)
        await self.load(1.0)
        await asyncio.to_thread(a.start)
        await asyncio.to_thread(b.each_session, "pg_terminate_backend")
        ended = time.monotonic()
        gap = await self.first_answer(ended, 60)
        print(f"it came back read-only: first 200 {gap or -1:.2f} s after all sessions were ended", flush=True)
        checks.run("it comes back read-only: pushes are answered by the other one",
                   lambda: expect_that(gap is not None, "none in 60 s"))
        await self.load(1.0)


if __name__ == "__main__":
    sys.exit(main(Away, __doc__))
