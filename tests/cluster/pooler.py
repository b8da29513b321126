"""PgBouncer in transaction mode between, with `pooler = true`, under load: `pooler.py`.

It is killed and started again, then PostgreSQL behind it is restarted. Pushes are answered again by themselves, and
nothing answered is missing. PgBouncer has fewer connections to PostgreSQL than the relay to it.
"""
import asyncio
import sys
import time

import postgres
from load import Load, expect, expect_that, main, skip

CONNECTIONS = 4


class Pooled(Load):
    def prepare(self):
        super().prepare()
        self.pooler = postgres.Pooler(self.server, CONNECTIONS)
        self.pooler.start()

    def queue(self):
        return (f'type = "postgres"\nurl = "{postgres.url(self.pooler)}"\ntls = "off"\nstandby = "none"\npooler = true')

    async def meet(self, checks):
        begun, ended = await self.load(3.0)
        print(f"{len(self.sender.answers(begun, ended)) / (ended - begun):.0f} pushes/s answered", flush=True)
        counted = int(await asyncio.to_thread(self.server.sql, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'wxrelay'"))
        checks.run("the relay's sessions share those of the pooler",
                   lambda: expect_that(0 < counted <= CONNECTIONS, f"{counted} sessions"))
        # Long enough for pushes to be refused.
        for name, seconds, stop, start in [
                ("PgBouncer is killed", 6.0, self.pooler.kill, self.pooler.start),
                ("PostgreSQL is restarted behind it", 0.0, self.server.stop, self.server.start)]:
            await asyncio.to_thread(stop)
            await asyncio.sleep(seconds)
            lives = await self.process.ask("/livez")
            await asyncio.to_thread(start)
            back = time.monotonic()
            gap = await self.first_answer(back, 60)
            print(f"{name}: first 200 {gap or -1:.2f} s after the start", flush=True)
            checks.run(f"{name}: liveness stays", lambda: expect(lives, "ok", "/livez"))
            checks.run(f"{name}: pushes are answered again", lambda: expect_that(gap is not None, "none in 60 s"))
            await self.load(1.0)
        refused = self.sender.statuses[503]
        checks.run("pushes were refused while PgBouncer was gone", lambda: expect_that(refused > 0, "none was"))

    def end(self):
        if hasattr(self, "pooler"):
            self.pooler.end()
        super().end()


if __name__ == "__main__":
    sys.exit(main(Pooled, __doc__) if postgres.pgbouncer() else skip("pgbouncer is not installed"))
