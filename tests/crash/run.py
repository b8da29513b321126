"""kill -9 at random moments: `run.py --kills N --seed S [--binary PATH]`.

Pushes from several connections, two handlers (one of them flaky) and an identity provider; the relay is killed N times
and restarted at once, each time on the same store. At the end everything is let through, and three lists are compared:
pushes answered 200, events in the ledger, events seen by the targets. Closes with `N passed, N failed`.

The seed fixes the plan of kills and the moods of the flaky target; what the machine does between them it cannot fix.
"""
import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from lives import Run
from rig import Checks, parsed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--rate", type=float, default=400.0, help="pushes a second, at most")
    parser.add_argument("--keep", action="store_true", help="keep the store, and print its folder")
    arguments = parsed(parser)
    checks = Checks()
    folder = Path(tempfile.mkdtemp(prefix="wxrelay-crash-"))
    limit = 60 + 5 * arguments.kills
    checks.run(f"the run ends within {limit} s", lambda: asyncio.run(asyncio.wait_for(Run(arguments, folder).go(checks), limit)))
    if arguments.keep or checks.failed:
        print(f"the store is kept in {folder}")
    else:
        shutil.rmtree(folder)
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
