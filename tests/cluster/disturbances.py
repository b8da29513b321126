"""What happens to a cluster: a plan by seed, and each fault of it. Several run at once."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from cluster import Cluster
from history import now
from load import wait_for
from network import has_tunnels
from postgres import is_running
from replicas import Replica, has_faketime

AT_ONCE = 3
CLOCKS = (0, 0, 30, -30)  # seconds that a replica's clock is ahead
LOCKED = ("known", "event", "delivery", "replica", "tally_delta", "attempt")

Fault = Callable[["Disturbances", random.Random], Coroutine[Any, Any, list[str]]]


class Disturbances:
    """The faults that run. Each returns the machines that it met."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.history = cluster.history
        self.net = cluster.net
        self.servers = asyncio.Lock()  # one change of the pair of servers at a time
        self.busy = {replica.name: asyncio.Lock() for replica in cluster.replicas}
        self.places = asyncio.Semaphore(AT_ONCE)
        self.begun: dict[Any, float] = {}

    async def run(self, plan: list[tuple[str, float, float]]) -> None:
        """Begins them one after another, and returns when all are over."""
        tasks = []
        for name, pause, seed in plan:
            await asyncio.sleep(pause)
            # A freeze takes long, and the others run beside it.
            if name != "freeze":
                await self.places.acquire()
            tasks.append(asyncio.create_task(self._one(name, random.Random(seed))))
        await asyncio.gather(*tasks)

    async def _one(self, name: str, rng: random.Random) -> None:
        self.begin()
        try:
            subjects = await FAULTS[name](self, rng)
            begun = self.begun.pop(asyncio.current_task())
            self.history.note("fault", name=name, subjects=subjects, begun=begun, ended=now())
            if self.cluster.arguments.verbose:
                print(f"{begun:7.2f} to {now():7.2f}  {name} {' '.join(subjects)}", flush=True)
        finally:
            if name != "freeze":
                self.places.release()

    def begin(self) -> None:
        """The fault of this task begins now; until then it waited for another one."""
        self.begun[asyncio.current_task()] = now()

    @contextlib.asynccontextmanager
    async def one_replica(self, rng: random.Random) -> AsyncIterator[Replica]:
        """A replica that nothing else happens to meanwhile."""
        replica = rng.choice(self.cluster.replicas)
        async with self.busy[replica.name]:
            self.begin()
            yield replica

    @contextlib.asynccontextmanager
    async def the_servers(self) -> AsyncIterator[None]:
        """The pair of servers, which nothing else changes meanwhile."""
        async with self.servers:
            self.begin()
            yield

    async def start(self, replica: Replica, rng: random.Random) -> None:
        replica.offset = rng.choice(CLOCKS) if has_faketime() and not self.cluster.arguments.one_clock else 0
        await replica.live()

    async def kill(self, rng: random.Random) -> list[str]:
        """kill -9 of a replica."""
        async with self.one_replica(rng) as replica:
            await replica.kill()
            await asyncio.sleep(rng.choice([0.0, 1.0, 4.0, 11.0]) * rng.random())
            await self.start(replica, rng)
            return [replica.name]

    async def freeze(self, rng: random.Random) -> list[str]:
        """SIGSTOP of a replica: longer than others wait until they take over, or shorter."""
        async with self.one_replica(rng) as replica:
            replica.signal(signal.SIGSTOP)
            await asyncio.sleep(rng.choice([30.0, 30.0, 10.0, 6.0]))
            replica.signal(signal.SIGCONT)
            # What it does when it continues belongs to the fault.
            await asyncio.sleep(1.0)
            return [replica.name]

    async def expel(self, rng: random.Random) -> list[str]:
        """The row of a replica is removed, as after ten minutes of silence, or when PostgreSQL's clock jumps; it lives, or is thawed then."""
        async with self.one_replica(rng) as replica:
            is_frozen = rng.random() < 0.5
            if is_frozen:
                replica.signal(signal.SIGSTOP)
                await asyncio.sleep(rng.uniform(1.0, 8.0))
            with contextlib.suppress(RuntimeError):
                await asyncio.to_thread(
                    self.cluster.primary.sql, f"DELETE FROM wxrelay.replica WHERE name = '{replica.name}'"
                )
            await asyncio.sleep(rng.uniform(0.0, 2.0))
            if is_frozen:
                replica.signal(signal.SIGCONT)
            await asyncio.sleep(2.0)
            return [replica.name]

    async def restart(self, rng: random.Random) -> list[str]:
        """SIGTERM and a new process, one replica after another."""
        for replica in self.cluster.replicas:
            async with self.busy[replica.name]:
                await replica.stop(20.0)
                await self.start(replica, rng)
        return [replica.name for replica in self.cluster.replicas]

    async def cut_store(self, rng: random.Random) -> list[str]:
        """No packet between a replica and the servers, or none in one direction."""
        async with self.one_replica(rng) as replica:
            ways = [(replica.machine, server.machine) for server in self.cluster.databases]
            ways = rng.choice([ways, [way[::-1] for way in ways], ways + [way[::-1] for way in ways]])
            await self.cut(ways, rng.choice([2.0, 5.0, 8.0, 13.0]))
            return [replica.name]

    async def cut_targets(self, rng: random.Random) -> list[str]:
        """The same between a replica and the targets."""
        async with self.one_replica(rng) as replica:
            there = self.net.machines["targets"]
            ways = [(replica.machine, there), (there, replica.machine)]
            await self.cut(ways[rng.randrange(2) :], rng.uniform(1.0, 6.0))
            return [replica.name]

    async def cut_standby(self, rng: random.Random) -> list[str]:
        """The same between the servers: commits wait."""
        async with self.the_servers():
            await self.cut(self.between_servers(), rng.uniform(1.0, 6.0))
            return ["a", "b"]

    def between_servers(self) -> list[tuple[Any, Any]]:
        a, b = (server.machine for server in self.cluster.databases)
        return [(a, b), (b, a)]

    async def cut(self, ways: list[tuple[Any, Any]], seconds: float) -> None:
        for way in ways:
            self.net.cut(*way)
        try:
            await asyncio.sleep(seconds)
        finally:
            for way in ways:
                self.net.restore(*way)

    async def isolate(self, rng: random.Random) -> list[str]:
        """The link of a replica is down."""
        async with self.one_replica(rng) as replica:
            if self.net.has_links:
                self.net.isolate(replica.machine)
                await asyncio.sleep(rng.choice([2.0, 6.0, 12.0]))
                self.net.join(replica.machine)
            return [replica.name]

    async def fail_over(self, rng: random.Random) -> list[str]:
        """kill -9 of the primary; the standby, which may have been cut off before, takes its place."""
        async with self.the_servers():
            ways = self.between_servers() if rng.random() < 0.5 else []
            for way in ways:
                self.net.cut(*way)
            await asyncio.sleep(rng.uniform(0.3, 2.0))
            await asyncio.to_thread(self.cluster.primary.kill)
            for way in ways:
                self.net.restore(*way)
            await asyncio.sleep(rng.choice([0.0, 0.0, 2.0, 7.0]))
            await asyncio.to_thread(self.cluster.fail_over, rng.random() < 0.5)
            return ["a", "b"]

    async def crash(self, rng: random.Random) -> list[str]:
        """kill -9 of the primary, which is started again: what no standby has confirmed may be there."""
        async with self.the_servers():
            await asyncio.to_thread(self.cluster.primary.kill)
            await asyncio.sleep(rng.uniform(0.0, 2.0))
            await asyncio.to_thread(self.cluster.primary.start)
            await asyncio.to_thread(wait_for, self.cluster.primary.has_standby, "the standby")
            return [self.cluster.primary.name]

    async def stall_standby(self, rng: random.Random) -> list[str]:
        """The receiver of the standby is frozen, and meanwhile the relay's waiting sessions are ended and cancelled."""
        async with self.the_servers():
            receivers = [pid for pid in self.cluster.standby.processes() if b"walreceiver" in command_of(pid)]
            for pid in receivers:
                os.kill(pid, signal.SIGSTOP)
            until = now() + rng.uniform(1.0, 5.0)
            while now() < until:
                await asyncio.sleep(rng.uniform(0.2, 1.0))
                if rng.random() < 0.5:
                    await self.meet_sessions(rng)
            for pid in receivers:
                if is_running(pid):
                    os.kill(pid, signal.SIGCONT)
            return [self.cluster.standby.name]

    async def sessions(self, rng: random.Random) -> list[str]:
        """Sessions of the relays are ended and cancelled."""
        until = now() + rng.uniform(0.5, 3.0)
        while now() < until:
            await self.meet_sessions(rng)
            await asyncio.sleep(rng.uniform(0, 0.3))
        return ["a", "b"]

    async def meet_sessions(self, rng: random.Random) -> None:
        function = rng.choice(["pg_cancel_backend", "pg_terminate_backend"])
        with contextlib.suppress(RuntimeError):  # the primary may be dead
            await asyncio.to_thread(self.cluster.primary.each_session, function, rng.choice([0.1, 0.4, 1.0]))

    async def lock_table(self, rng: random.Random) -> list[str]:
        """A table is locked for 3 s."""
        sql = f"BEGIN; LOCK TABLE wxrelay.{rng.choice(LOCKED)} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); COMMIT"
        with contextlib.suppress(RuntimeError):
            await asyncio.to_thread(self.cluster.primary.sql, sql)
        return ["a", "b"]

    async def slow(self, rng: random.Random) -> list[str]:
        """All that the primary sends to the replicas takes 300 ms."""
        async with self.the_servers():
            machine = self.cluster.primary.machine
            self.net.slow(machine, [replica.machine for replica in self.cluster.replicas], 0.3)
            await asyncio.sleep(rng.uniform(2.0, 7.0))
            self.net.fast(machine)
            return [machine.name]


def command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()
    return b""


FAULTS: dict[str, Fault] = {
    "kill": Disturbances.kill,
    "freeze": Disturbances.freeze,
    "expel": Disturbances.expel,
    "restart": Disturbances.restart,
    "cut-store": Disturbances.cut_store,
    "cut-targets": Disturbances.cut_targets,
    "cut-standby": Disturbances.cut_standby,
    "isolate": Disturbances.isolate,
    "fail-over": Disturbances.fail_over,
    "crash": Disturbances.crash,
    "stall-standby": Disturbances.stall_standby,
    "sessions": Disturbances.sessions,
    "lock-table": Disturbances.lock_table,
    "slow": Disturbances.slow,
}


def possible(namespaces: bool) -> list[str]:
    """The faults that can be here."""
    without = set() if namespaces and has_tunnels() else {"slow"} if namespaces else {"isolate"}
    return [name for name in FAULTS if name not in without]


def plan_of(rng: random.Random, names: list[str], count: int, pause: float) -> list[tuple[str, float, float]]:
    """(fault, pause before it, its seed): each kind comes before one comes again."""
    plan: list[tuple[str, float, float]] = []
    while len(plan) < count:
        plan += [(name, rng.uniform(0, 2 * pause), rng.random()) for name in rng.sample(names, len(names))]
    return plan[:count]
