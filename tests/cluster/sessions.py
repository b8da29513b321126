"""The relay's sessions are ended and cancelled at random under load: `sessions.py --seconds S`.

Then the same while the synchronous standby is frozen (SIGSTOP): no push is answered while it is away, a repeated one
neither. At last the primary is killed with the standby frozen, which is promoted: nothing answered is missing.
"""
import asyncio
import sys
import time

from load import Load, expect, expect_that, main

FUNCTIONS = ["pg_terminate_backend", "pg_cancel_backend"]


class Sessions(Load):
    def prepare(self):
        self.pair()

    async def disturb(self, seconds):
        """How many sessions were ended or cancelled."""
        count, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            function = FUNCTIONS[self.kill_rng.randrange(2)]
            count += await asyncio.to_thread(self.server.each_session, function, self.kill_rng.choice([0.2, 0.5, 1.0]))
            await asyncio.sleep(self.kill_rng.uniform(0, 0.2))
        return count

    async def meet(self, checks):
        begun = time.monotonic()
        count = await self.disturb(self.arguments.seconds)
        answered = len(self.sender.answers(begun))
        print(f"{count} sessions ended or cancelled in {self.arguments.seconds} s, {answered} pushes answered", flush=True)
        checks.run("pushes are answered meanwhile", lambda: expect_that(answered > 0, "none was"))
        checks.run("sessions were met", lambda: expect_that(count > 0, "none was"))
        a, b = self.servers
        await asyncio.to_thread(b.freeze)
        frozen = time.monotonic()
        count = await self.disturb(self.arguments.seconds)
        # What the standby had confirmed before may be answered a moment later.
        early = [entry for entry in self.sender.answers(frozen) if entry[0] > frozen]
        print(f"standby frozen: {count} sessions ended or cancelled, {len(early)} pushes answered", flush=True)
        checks.run("no push is answered while the standby is frozen", lambda: expect(len(early), 0, "answered"))
        thawed = time.monotonic()
        await asyncio.to_thread(b.thaw)
        gap = await self.first_answer(thawed, 60)
        print(f"first 200 {gap or -1:.2f} s after the standby goes on", flush=True)
        checks.run("pushes are answered when it goes on", lambda: expect_that(gap is not None, "none in 60 s"))
        await self.load(1.0)
        await asyncio.to_thread(b.kill)
        gone = time.monotonic()
        count = await self.disturb(self.arguments.seconds)
        early = [entry for entry in self.sender.answers(gone) if entry[0] > gone]
        checks.run("no push is answered while the standby is gone", lambda: expect(len(early), 0, "answered"))
        await asyncio.to_thread(a.kill)
        await asyncio.to_thread(b.start)
        await asyncio.to_thread(b.promote)
        self.server = b
        gap = await self.first_answer(time.monotonic(), 60)
        print(f"first 200 {gap or -1:.2f} s after the promotion; {count} sessions ended or cancelled before", flush=True)


def options(parser):
    parser.add_argument("--seconds", type=float, default=4.0, help="of each part")


if __name__ == "__main__":
    sys.exit(main(Sessions, __doc__, options, lambda arguments: 180 + 4 * arguments.seconds))
