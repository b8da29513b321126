"""Three replicas, HAProxy, a primary and its synchronous standby under random faults: `run.py --seed S --faults N`.

Each is on a machine of its own: as root a network namespace, else an address behind proxies. The seed decides the faults,
their moments and the moods of the targets; how far the processes get in between it cannot fix. At the end the lists of the
sender, the targets and the store are compared (history.py). The history is kept where a check fails.

The controls break a promise, which the checker must find: with `--control local` the commits of pushes wait for no standby,
with `--control async` it is asynchronous, and answered pushes are lost; with `--control broken` PostgreSQL forgets by a
trigger which pushes it knows, and in which order.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from load import Checks, expect, expect_that, parsed, percentile, skip  # first: it finds the modules of ../crash
from cluster import CONTROLS, Cluster, Row
from disturbances import FAULTS, Disturbances, plan_of, possible
from history import CHECKERS, TAKEN_OVER, History, Lists, now
from planted import unnoticed
import network
import postgres
import replicas

FREE = 5.0  # seconds that a delivery may be free and due then
PATIENCE = 45.0  # seconds until everything is delivered when nothing is wrong any more
SHOWN = 3
FOUND = {
    "local": ["no answered push is lost"],
    "async": ["no answered push is lost"],
    "broken": [
        "one push is one event",
        "an event has one id at every target",
        "a user's pushes are delivered in order",
    ],
}
LATE = 0.5  # seconds
# What a spool does not promise: between replicas, the order is that in which the spools are stored, and no target is
# asked for a reply while PostgreSQL is away.
NOT_SPOOLED = {"a user's pushes are delivered in order", "every try of a push gets the same reply"}


class Attack:
    """One run."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.history = History(folder / "history.jsonl")
        self.cluster = Cluster(arguments, folder, self.history)
        self.faults: Any = None
        self.waits: set[Row] = set()  # what was free and due for too long, with nothing wrong any more

    async def go(self, checks: Checks) -> None:
        try:
            await self.cluster.start()
            await self.first_answers()
            watching = asyncio.create_task(self.watch())
            self.faults = Disturbances(self.cluster)
            if self.arguments.control:
                await self.control(checks)
            else:
                await self.disturb(checks)
            watching.cancel()
        finally:
            await self.cluster.end()
            self.history.close()

    async def watch(self) -> None:
        """Notes when this process was late by more than a target may be."""
        while True:
            begun = now()
            await asyncio.sleep(0.1)
            if now() - begun > LATE:
                self.history.note("lag", begun=begun, ended=now())

    async def first_answers(self) -> None:
        """Until each replica has answered a push: before, what is done to it may do nothing to the pushes."""
        while not {replica.name for replica in self.cluster.replicas} <= self.cluster.pushes.relays:
            await asyncio.sleep(0.05)

    async def disturb(self, checks: Checks) -> None:
        arguments, cluster = self.arguments, self.cluster
        names = arguments.only or possible(arguments.namespaces)
        rng = random.Random(arguments.seed)
        await self.faults.run(plan_of(rng, names, arguments.faults, arguments.pause))
        over = now()
        await cluster.pushes.finish()
        await self.rest()
        rested = now()
        codes = [await replica.stop(20.0) for replica in cluster.replicas]
        await asyncio.to_thread(cluster.note_end, self.waits)
        self.figures(over, rested)
        lists = Lists(self.history.lines)
        for name, checker in CHECKERS.items():
            if self.arguments.spool and name in NOT_SPOOLED:
                continue
            checks.run(name, lambda checker=checker: judge(list(checker(lists))))
        checks.run(
            "the checker finds what is planted in a copy of the history",
            lambda: expect(unnoticed(lists), [], "not found"),
        )
        ends = [end for replica in cluster.replicas for end in replica.ends]
        checks.run("no replica ended by itself", lambda: expect_that(not ends, "; ".join(ends[:SHOWN])))
        checks.run("SIGTERM ended them with exit code 0", lambda: expect(codes, [0, 0, 0], "exit codes"))

    async def rest(self) -> None:
        """Waits until everything is delivered, or for so long that it never will be."""
        for endpoint in self.cluster.endpoints:
            endpoint.is_calm = True
        until = now() + PATIENCE
        since: dict[Row, float] = {}
        while await asyncio.to_thread(self.cluster.pending) and now() < until:
            free = await asyncio.to_thread(self.cluster.free)
            since = {row: since.get(row, now()) for row in free}
            for row in [row for row, seen in since.items() if now() - seen > FREE]:
                self.waits.add(row)
            await asyncio.sleep(0.2)

    async def control(self, checks: Checks) -> None:
        """What was broken must be found."""
        cluster = self.cluster
        await asyncio.sleep(1.0)
        if self.arguments.control == "broken":
            for replica in cluster.replicas:
                await self.faults.cut([(replica.machine, cluster.net.machines["targets"])], 4.0)
        else:
            await self.lose_primary()
        await cluster.pushes.finish()
        await self.rest()
        await asyncio.to_thread(cluster.note_end)
        lists = Lists(self.history.lines)
        for name in FOUND[self.arguments.control]:
            found = list(CHECKERS[name](lists))
            checks.run(
                f"control {self.arguments.control}, not so: {name}",
                lambda found=found: (
                    expect_that(found, "nothing is found") or f"{len(found)} of {len(cluster.pushes.answered)}"
                ),
            )

    async def lose_primary(self) -> None:
        """The standby is cut off a while before the primary is lost."""
        ways = self.faults.between_servers()
        for way in ways:
            self.cluster.net.cut(*way)
        await asyncio.sleep(2.0)
        await asyncio.to_thread(self.cluster.primary.kill)
        for way in ways:
            self.cluster.net.restore(*way)
        await asyncio.to_thread(self.cluster.fail_over, False)

    def figures(self, over: float, rested: float) -> None:
        pushes, lists = self.cluster.pushes, Lists(self.history.lines)
        kinds = Counter(line["name"] for line in lists.of["fault"])
        statuses = Counter(line["status"] for line in lists.of["try"])
        took = [line["ended"] - line["begun"] for line in lists.of["try"] if line["status"] == 200]
        waits = [
            wait for target, number in lists.attempts if target != "ordered" for wait in lists.wait(target, number)
        ]
        takes = [sum(line["status"] == 200 for line in attempts) for attempts in lists.attempts.values()]
        print(f"{sum(kinds.values())} faults in {over:.0f} s: {dict(kinds)}")
        print(
            f"{len(pushes.seconds)} pushes, {len(pushes.answered)} answered, {len(pushes.given_up)} given up after three tries; "
            f"{pushes.tries} tries: {dict(statuses)}; p50 {1000 * percentile(took, 0.5):.0f} ms, p99 {1000 * percentile(took, 0.99):.0f} ms"
        )
        print(
            f"{sum(map(bool, takes))} deliveries, {sum(takes) - sum(map(bool, takes))} repeats of a taken one; "
            f"{sum(TAKEN_OVER in line['message'] for line in lists.of['log'])} times taken over; "
            f"delivered {rested - over:.1f} s after the last fault; "
            f"first taken {percentile(waits, 0.5):.2f} s after the answer, p99 {percentile(waits, 0.99):.1f} s, "
            f"at most {max(waits, default=0):.1f} s",
            flush=True,
        )


def judge(found: list[str]) -> None:
    expect_that(not found, f"{len(found)} violations\n    " + "\n    ".join(found[:SHOWN]))


def run(arguments: argparse.Namespace) -> int:
    checks = Checks()
    folder = Path(tempfile.mkdtemp(prefix="wxrelay-cluster-run-"))
    limit = 240 + 12 * arguments.faults
    attack = Attack(arguments, folder)
    checks.run(f"the run ends within {limit} s", lambda: asyncio.run(asyncio.wait_for(attack.go(checks), limit)))
    if checks.failed or arguments.keep:
        print(f"the history is kept: {folder}/history.jsonl")
    else:
        shutil.rmtree(folder)
    return checks.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=25)
    parser.add_argument(
        "--pause", type=float, default=2.0, help="seconds between the beginnings of two faults, on average"
    )
    parser.add_argument("--rate", type=float, default=80.0, help="pushes a second, at most")
    parser.add_argument(
        "--only", action="append", choices=list(FAULTS), help="this kind of faults; may be given several times"
    )
    parser.add_argument(
        "--reply-window",
        action="store_true",
        help="replies may be as late as WeChat's third try; so for each third seed",
    )
    parser.add_argument("--spool", action="store_true", help="each replica has a spool; so for each fifth seed")
    parser.add_argument("--control", choices=list(CONTROLS))
    parser.add_argument("--one-clock", action="store_true", help="the replicas' clocks are not apart")
    parser.add_argument("--proxies", action="store_true", help="no namespaces, even as root")
    parser.add_argument("--keep", action="store_true", help="keep the history")
    parser.add_argument("--verbose", action="store_true", help="a line for each fault")
    arguments = parsed(parser)
    arguments.reply_window |= arguments.seed % 3 == 0
    arguments.spool |= arguments.seed % 5 == 0
    if postgres.programs() is None:
        return skip(f"PostgreSQL {postgres.OLDEST} or newer is not installed")
    if replicas.haproxy() is None:
        return skip("HAProxy is not installed")
    arguments.namespaces = not arguments.proxies and network.is_possible()
    if arguments.namespaces:
        network.alone()
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
