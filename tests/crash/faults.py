"""A fault at every call that changes the store: `faults.py [--every K] [--kinds ...] [--seed S] [--binary PATH]`.

A scripted run (start, pushes one after another, some at once, deliveries, one retry, stop) is repeated with a fault at the
1st, 2nd, 3rd ... call, until a run meets no fault any more; `--every K` takes every Kth call only, `--first N` the first N,
where the store is made. It is run from an empty folder, and from a store whose log is about to be written back into the
database. After each, the relay is started again without faults, WeChat pushes again what was not answered, and the three
lists are compared as in run.py.

  kill       SIGKILL in place of a write
  tear       only the first sectors of a write, then SIGKILL
  kill-sync, kill-name, kill-truncate    SIGKILL in place of a flush, of a change of names, of a cut-off
  eio        a write fails with EIO, once
  eio-sync   a flush fails with EIO, once: the relay has to end, non-zero, and nothing may be answered 200 that was not
             flushed before
  enospc     a write comes out short, and the next ones fail with ENOSPC: 503, and it recovers without a restart
  erofs      every write fails with EROFS for a while: 503, and it recovers without a restart
  stall-sync a flush takes 2 s: what waits for it is answered late, but in time, once
"""
import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import ledger
import shim
from disk import Disk
from relay import Ended
from rig import Checks, Failure, expect, expect_that, parsed
from scene import Scene

IN_A_ROW, AT_ONCE = 40, 12
PATIENCE = 15.0  # seconds for a push while the disk is full or read-only, and for `/readyz` after it
FOR = "300ms"  # so long it is
WECHAT = 5.0  # seconds that WeChat waits for an answer
FRAMES = 960  # in the log of the store that the second script starts from; at 1000 SQLite writes it back

KINDS = {
    "kill": ("write", "kill", 1), "tear": ("write", "tear", 1), "kill-sync": ("sync", "kill", 1),
    "kill-name": ("name", "kill", 1), "kill-truncate": ("truncate", "kill", 1), "eio": ("write", "eio", 1),
    "eio-sync": ("sync", "eio", 1), "enospc": ("write", "enospc", FOR), "erofs": ("write", "erofs", FOR),
    "stall-sync": ("sync", "stall", 1)}
WORDS = {"enospc": "disk-full", "erofs": "store-failing"}  # what `/readyz` says meanwhile


async def script(scene, relay, retry_refused):
    """The run itself; the exit code of the relay. `retry_refused`: a push that is refused is tried again until it is accepted."""
    await relay.start()
    try:
        address = await relay.ready()
    except Ended as ended:
        return ended.code
    for count in [1] * IN_A_ROW + [AT_ONCE]:
        pushes = [push_until_taken(scene, relay, address, retry_refused) for _ in range(count)]
        await asyncio.gather(*pushes)
        if not relay.is_alive():
            return await relay.ended()
    await scene.settled(relay)
    if retry_refused:
        await healed(scene, relay)
    return await relay.stop()


async def healed(scene, relay):
    deadline = time.monotonic() + PATIENCE
    while (word := await relay.readiness()) != "ready" and relay.is_alive():
        scene.words.add(word)
        expect_that(time.monotonic() < deadline, f"/readyz still says {word} after {PATIENCE:.0f} s")
        await asyncio.sleep(0.05)


async def push_until_taken(scene, relay, address, retry_refused):
    number = len(scene.seconds)
    status = await scene.push(address)
    deadline = time.monotonic() + PATIENCE
    while retry_refused and status != 200 and relay.is_alive() and time.monotonic() < deadline:
        scene.words.add(await relay.readiness())
        await asyncio.sleep(0.005)
        status = await scene.push(address, number)


async def with_fault(scene, kind, call):
    """The script with a fault at a call; False if it was over before that call."""
    group, fault_action, calls = KINDS[kind]
    relay = scene.relay(at=(group, call), do=fault_action, calls=calls)
    try:
        code = await script(scene, relay, retry_refused=fault_action in ("eio", "enospc", "erofs"))
    finally:
        await relay.kill()
    entries = list(scene.log.entries())
    fault = next((index for index, entry in enumerate(entries) if entry.kind == "fault"), None)
    if fault is None:
        expect(code, 0, f"exit code of a run without a fault ({relay.tail[-1:]})")
        return False
    where = f"at {group} {call} of {Path(entries[fault].path).name}"
    try:
        after_fault(scene, kind, entries, fault, code)
        await let_through(scene, finished_may_go=kind == "enospc")
    except Failure as failure:
        raise Failure(f"{fault_action} {where}: {failure}") from None
    return True


def after_fault(scene, kind, entries, fault, code):
    """The checks before the restart."""
    others = [status for status in scene.statuses if status not in (200, 503, None)]
    expect(others, [], "answers other than 200 and 503")
    if kind == "eio-sync":
        sent = sum(entry.kind == "sent" for entry in entries)
        for lost in lost_by_power_cuts(scene, entries, fault):
            raise Failure(f"answered 200 and lost if the power goes off, {ledger.some(lost)}; {sent} times 200 after the fault")
        expect_that(code not in (0, None), f"a flush failed and the relay kept running (exit code {code}), {sent} times 200 after it")
    elif kind == "stall-sync":
        expect(code, 0, "exit code")
        expect([status for status in scene.statuses if status != 200], [], "answers other than 200")
        expect_that(scene.longest < WECHAT, f"an answer took {scene.longest:.1f} s")
        expect(sum(target.repeats() for target in scene.targets), 0, "deliveries that were made more than once")
    elif kind in WORDS:
        # At the start it may refuse to run; once it runs it must survive the fault.
        ran = any(entry.kind == "answered" for entry in entries) or bool(scene.statuses)
        expect_that(code == 0 or not ran, f"it did not survive the fault: exit code {code}")
        expect_that(not ran or not scene.unanswered(), f"it did not recover: never answered 200, {ledger.some(scene.unanswered())}")
        strange = scene.words - {WORDS[kind], "ready", None}
        expect_that(not strange, f"/readyz said {strange}")
    elif kind == "eio":
        expect_that(code is not None, "it did not exit after SIGTERM")
    else:
        expect(code, -9, "exit code")


def lost_by_power_cuts(scene, entries, fault):
    """What is lost if the power goes off after an answer behind the fault, or at the end, and only what was flushed is there."""
    disk, answered = Disk(scene.disk, scene.like and scene.like.store), set(scene.like.answered if scene.like else ())
    for index, entry in enumerate(entries):
        disk.feed(entry)
        if entry.kind == "answered":
            answered.add(entry.id)
        last = index + 1 == len(entries)
        if answered and (last or (entry.kind == "answered" and index > fault)):
            image = scene.folder / "image"
            disk.image(image, random.Random(0), 0)
            if lost := ledger.Ledger(image / "store", "rw").missing(answered):
                yield lost
            shutil.rmtree(image)


async def let_through(scene, finished_may_go):
    """Starts the relay without faults, pushes again what was not answered, delivers everything, compares."""
    code, told = await asyncio.to_thread(ledger.audit, scene.binary, scene.config)
    expect_that(code == 0 or not scene.answered, f"`wxrelay audit` before the restart ends with {code}: {told}")
    relay = scene.relay(watched=False)
    await relay.start()
    try:
        address = await relay.ready()
        for number in scene.unanswered():
            expect(await scene.push(address, number), 200, f"answer to push {number} after the restart")
        expect_that(await scene.settled(relay), "the restarted relay exited by itself")
        expect(await relay.stop(), 0, "exit code of the restarted relay")
    except Ended as ended:
        raise Failure(f"the restart: {ended}") from None
    finally:
        await relay.kill()
    audited = await asyncio.to_thread(ledger.audit, scene.binary, scene.config)
    for name, check in ledger.checks(ledger.Ledger(scene.store), audited, scene, scene.targets, finished_may_go):
        try:
            check()
        except Failure as failure:
            raise Failure(f"{name}: {failure}") from None


class Sweep:
    """Every kind over both scripts, some runs in parallel."""

    def __init__(self, arguments, folder):
        self.arguments = arguments
        self.folder = folder
        self.library = shim.build(folder)
        self.rng = random.Random(arguments.seed)
        self.refused = 0  # pushes answered 503
        self.longest = 0.0  # seconds that one took
        self.words = set()  # of /readyz

    async def go(self, checks):
        before = Scene(self.arguments.binary, self.folder / "almost-full", self.library)
        await nearly_full(before)
        for start, like in (("empty", None), ("full-log", before)):
            if start not in self.arguments.starts:
                continue
            counts = await self.rehearse(like)
            print(f"{start}: " + ", ".join(f"{count} {group}" for group, count in counts.items()) + " calls", flush=True)
            for kind in self.arguments.kinds:
                await self.kind(checks, start, like, kind, counts[KINDS[kind][0]])

    async def rehearse(self, like):
        """The script without a fault: how many calls there are."""
        scene = Scene(self.arguments.binary, self.folder / f"rehearsal-{bool(like)}", self.library)
        await scene.open(like)
        expect(await script(scene, scene.relay(), False), 0, "exit code of the script without a fault")
        expect(scene.untaken(), [], "what was not delivered, without a fault")
        scene.close()
        return shim.call_counts(list(scene.log.entries()))

    async def kind(self, checks, start, like, kind, about):
        every = self.arguments.every if about > 3 * self.arguments.every else max(1, min(self.arguments.every, about // 3))
        numbers = iter(range(1 + self.rng.randrange(every), self.arguments.first + 1 if self.arguments.first else 10 * about + 100, every))
        if self.arguments.call:
            numbers = iter([self.arguments.call])
        begun, found, done = time.monotonic(), [], []
        self.refused, self.longest, self.words = 0, 0.0, set()

        async def worker():
            for call in numbers:
                if not await self.one(start, like, kind, call, found):
                    return
                done.append(call)

        await asyncio.gather(*(worker() for _ in range(self.arguments.jobs)))

        def sum_up():
            expect_that(not found, f"{len(found)} of {len(done)} runs; " + "; ".join(found[:3]))
            expect_that(done, "no run met its fault")
            if not self.arguments.call and not self.arguments.first:
                self.had_effect(kind)
            return f"{len(done)} runs, {self.refused} times 503, {self.longest:.1f} s the longest push, {time.monotonic() - begun:.0f} s"
        checks.run(f"{start}: {kind} at every {f'{every}th ' if every > 1 else ''}call of {KINDS[kind][0]}", sum_up)

    def had_effect(self, kind):
        if kind in WORDS:
            expect_that(self.refused, "no push was answered 503: the fault has no effect")
            expect_that(WORDS[kind] in self.words, f"/readyz never said {WORDS[kind]}, only {self.words}")
        elif kind == "stall-sync":
            expect_that(self.longest > 1.9, "no push was answered late: the fault has no effect")

    async def one(self, start, like, kind, call, found):
        """One run; False if it met no fault."""
        folder = self.folder / f"{start}-{kind}-{call}"
        scene = Scene(self.arguments.binary, folder, self.library)
        try:
            await scene.open(like)
            met = await asyncio.wait_for(with_fault(scene, kind, call), 90)
        except Exception as error:  # told with its number; the others still run
            again = f"faults.py --starts {start} --kinds {kind} --call {call}"
            found.append(f"{error if isinstance(error, Failure) else repr(error)} [{again}]")
            if len(found) <= 5:
                print(f"  {found[-1]} (kept in {folder})", flush=True)
            return True
        finally:
            scene.close()
            self.refused += scene.statuses.count(503)
            self.longest = max(self.longest, scene.longest)
            self.words |= scene.words
        shutil.rmtree(folder)
        return met


async def nearly_full(scene):
    """Fills the write-ahead log until just before a checkpoint, and kills the relay."""
    await scene.open()
    relay = scene.relay(watched=False)
    await relay.start()
    address = await relay.ready()
    wal = scene.store / f"{ledger.DATABASE}-wal"
    while wal.stat().st_size < FRAMES * 4120:
        expect(await scene.push(address), 200, "answer while the log is filled")
        await scene.settled(relay)
    await relay.kill()
    scene.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--starts", nargs="+", choices=["empty", "full-log"], default=["empty", "full-log"])
    parser.add_argument("--first", type=int)
    parser.add_argument("--call", type=int, help="only this call")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parsed(parser)
    checks = Checks()
    folder = Path(tempfile.mkdtemp(prefix="wxrelay-faults-"))
    sweep = Sweep(arguments, folder)
    checks.run("the sweep runs to its end", lambda: asyncio.run(sweep.go(checks)))
    if not checks.failed:
        shutil.rmtree(folder)
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
