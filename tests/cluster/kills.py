"""kill -9 of the relay at random moments, on PostgreSQL: `kills.py --kills N --seed S`.

As ../crash/run.py, which it is but for the store. Each process is another replica to PostgreSQL, so what the last killed
one had under way goes on by a takeover, after 22 s.
"""
import sys

import postgres
from load import Load, main
from lives import Run


class Kills(Load):
    async def go(self, checks):
        self.server = postgres.Server().create()
        self.servers = [self.server]
        await Run.go(self, checks)


def options(parser):
    parser.add_argument("--kills", type=int, default=10)


if __name__ == "__main__":
    sys.exit(main(Kills, __doc__, options, lambda arguments: 120 + 6 * arguments.kills, rate=400.0))
