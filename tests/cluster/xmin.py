"""A transaction is held open under load, so that nothing dead can be removed: `xmin.py --seconds S`.

Throughput and latency are compared with those of as long a time before. The load is paced, so that the noise of a busy
machine stays small.
"""
import asyncio
import subprocess
import sys

import postgres
from load import Load, expect_that, main, percentile

SLOWER = 0.85  # of the throughput before: less is more than noise
LATER = 2.0  # times the p99 before, and
NOISE = 0.1  # seconds


class Xmin(Load):
    async def meet(self, checks):
        await self.load(2.0)
        before = self.told("before", *await self.load(self.arguments.seconds))
        holder = subprocess.Popen(
            [postgres.programs() / "psql", "-X", "-q", "-U", "postgres", "-h", self.server.host, "-p", str(self.server.port),
             "-d", "wxrelay"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        holder.stdin.write("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM wxrelay.meta;\n")
        holder.stdin.flush()
        held = self.told("held", *await self.load(self.arguments.seconds))
        age = await asyncio.to_thread(self.server.sql, "SELECT max(age(backend_xmin)) FROM pg_stat_activity")
        dead = await asyncio.to_thread(
            self.server.sql, "SELECT relname, n_dead_tup FROM pg_stat_user_tables WHERE n_dead_tup > 0 ORDER BY 2 DESC LIMIT 3")
        holder.stdin.close()
        holder.wait()
        print(f"oldest transaction {age} behind; dead rows {dead.split()}", flush=True)
        checks.run("the throughput is that of before", lambda: expect_that(held[0] > SLOWER * before[0], f"{before} {held}"))
        checks.run("the p99 is that of before", lambda: expect_that(held[1] < LATER * before[1] + NOISE, f"{before} {held}"))

    def told(self, name, begun, ended):
        """Pushes answered a second, and their p99 in seconds."""
        answers = self.sender.answers(begun, ended)
        times = [end - start for start, end, _ in answers]
        rate, p50, p99 = len(answers) / (ended - begun), percentile(times, 0.5), percentile(times, 0.99)
        print(f"{name}: {rate:.0f} pushes/s, p50 {1000 * p50:.1f} ms, p99 {1000 * p99:.1f} ms", flush=True)
        return rate, p99


def options(parser):
    parser.add_argument("--seconds", type=float, default=60.0, help="that it is held")


if __name__ == "__main__":
    sys.exit(main(Xmin, __doc__, options, lambda arguments: 180 + 3 * arguments.seconds, rate=200.0))
