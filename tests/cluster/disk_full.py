"""The disk of PostgreSQL is full under load, for a while: `disk_full.py`. Needs root, to mount a disk in memory.

Pushes are refused with 503, nothing answered is lost, and the relay goes on by itself once there is space again.
PostgreSQL itself may end when its log cannot be written; then its supervisor, which is this script, starts it again.
"""
import asyncio
import os
import sys
import time

import postgres
from load import Load, expect_that, main, skip

SIZE = 192  # MiB
SETTINGS = ["min_wal_size = 32MB", "max_wal_size = 64MB", "wal_keep_size = 0", "max_wal_senders = 0", "wal_level = minimal"]


class DiskFull(Load):
    def prepare(self):
        self.server = postgres.Server("a", SETTINGS, memory=f"{SIZE}M").create()
        self.servers = [self.server]

    def fill(self):
        """Takes all the space that is left, from now on too."""
        with open(self.server.path("filler"), "ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(65536))
            except OSError:
                pass

    async def meet(self, checks):
        await self.load(2.0)
        before = self.sender.statuses.copy()
        until = time.monotonic() + self.arguments.seconds
        words = set()
        while time.monotonic() < until:
            await asyncio.to_thread(self.fill)
            words.add(await self.process.readiness())
            await asyncio.sleep(0.05)
        refused = self.sender.statuses[503] - before[503]
        others = {status: count - before[status] for status, count in self.sender.statuses.items() if count > before[status]}
        print(f"full for {self.arguments.seconds} s: statuses {others}, readiness {sorted(map(str, words))}", flush=True)
        checks.run("pushes are refused with 503 while the disk is full", lambda: expect_that(refused > 0, f"statuses {others}"))
        checks.run("readiness says so", lambda: expect_that("disk-full" in words, f"{sorted(map(str, words))}"))
        self.server.path("filler").unlink()
        freed = time.monotonic()
        running = await asyncio.to_thread(self.is_running)
        if not running:
            print("PostgreSQL had ended by itself; started again", flush=True)
            await asyncio.to_thread(self.server.start)
        gap = await self.first_answer(freed, 60)
        print(f"first 200 {gap or -1:.2f} s after space is free", flush=True)
        checks.run("pushes are answered again once there is space", lambda: expect_that(gap is not None, "none in 60 s"))
        await self.load(1.0)

    def is_running(self):
        try:
            os.kill(self.server.pid(), 0)
            return True
        except (ValueError, ProcessLookupError):
            return False


def options(parser):
    parser.add_argument("--seconds", type=float, default=8.0, help="that the disk is full")


if __name__ == "__main__":
    sys.exit(main(DiskFull, __doc__, options) if os.geteuid() == 0 else skip("mounting a disk in memory needs root"))
