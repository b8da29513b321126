"""The power goes off after every change of the store: `powercut.py [--every K] [--images R] [--seed S] [--lie wal]`.

Records one session under the shim: an empty folder, pushes, a SIGKILL before a flush, a restart at which WeChat pushes
again what was not answered while the targets hang, a log that is written back, a stop, another start. Then cuts the power
after every change in the recording, R times each, with another part of what was not flushed on the disk, and looks at
what is left: the store opens, `wxrelay audit` adds up, and what had been answered 200 by then, and what a target had taken
by then, is in it, under the same event id. On every 20th image the relay is started and delivers all the rest.

With `--lie wal` the shim leaves out the flush of SQLite's log at every commit, and says it was done: exactly what
synchronous=NORMAL leaves out. `--expect-loss` then inverts the verdict: it fails if no answered push is lost.
"""
import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ledger
import shim
from disk import Disk
from relay import Ended, embedded, write_config
from rig import Checks, Failure, expect, expect_that, parsed
from scene import Scene

SHARES = [0, 0.2, 0.5, 0.8, 1]  # how much of what was not flushed is on the disk
KILLED_AT = 55  # the flush that the first life is killed at: some pushes into it
CHANGES = {"open", "write", "sync", "truncate", "unlink", "rename", "mkdir"}


async def record(scene, lie):
    """The session; its log is what the cuts are made from."""
    await scene.open()
    relay = scene.relay(at=("sync", KILLED_AT), do="kill", lie=lie)
    await relay.start()
    address = await relay.ready()
    while relay.is_alive():
        await scene.push(address)
    expect(await relay.ended(), -9, "exit code of the first life")
    # The next process can read what the killed one wrote without a flush, but it is not on the disk.
    scene.hanging = True
    await life(scene, lie, 0, kill=True)
    scene.hanging = False
    await life(scene, lie, 70, kill=True)
    await life(scene, lie, 70)
    await life(scene, lie, 10)
    expect(scene.unanswered(), [], "pushes that were never answered")
    scene.close()


async def life(scene, lie, pushes, kill=False):
    """Starts, pushes again what was not answered, pushes some one by one and as many at once, lets all through."""
    relay = scene.relay(lie=lie)
    await relay.start()
    try:
        address = await relay.ready()
        for number in scene.unanswered():
            expect(await scene.push(address, number), 200, f"answer to push {number}, pushed again")
        for _ in range(pushes // 2):
            await scene.push(address)
        await asyncio.gather(*(scene.push(address) for _ in range(pushes // 2)))
        if not scene.hanging:
            await scene.settled(relay)
        if not kill:
            expect(await relay.stop(), 0, "exit code")
    finally:
        await relay.kill()


class Cut:
    """The promises at the moment of the power cut."""

    def __init__(self, index, share, answered, taken):
        self.index = index
        self.share = share
        self.answered = answered
        self.taken = taken

    def __str__(self):
        return f"cut after entry {self.index}, {self.share:.0%} of what was not flushed on the disk"


class Cuts:
    """All images of one recording."""

    def __init__(self, arguments, folder, scene):
        self.arguments = arguments
        self.folder = folder
        self.scene = scene
        self.rng = random.Random(arguments.seed)
        self.images = 0
        self.started = 0
        self.losses = []  # (image, pushes lost, what)
        self.broken = []

    def go(self):
        disk, entries = Disk(self.scene.disk), list(self.scene.log.entries())
        answered, taken = set(), {}
        with ThreadPoolExecutor(self.arguments.jobs) as pool:
            waiting = []
            for index, entry in enumerate(entries):
                if entry.kind == "answered":
                    answered.add(entry.id)
                elif entry.kind == "taken":
                    taken[entry.id] = entry.path
                # What was answered after this change and before the next is known at this cut too.
                disk.feed(entry)
                last = index + 1 == len(entries) or entries[index + 1].kind in CHANGES
                # Creating the store is never thinned out: it happens once and is unlike the rest.
                if not last or (answered and (index + self.arguments.seed) % self.arguments.every):
                    continue
                waiting = [job for job in waiting if not job.done() or job.result()]
                for share in [0, *self.rng.choices(SHARES, k=self.arguments.images - 1)]:
                    self.images += 1
                    image = self.folder / f"cut-{index}-{self.images}"
                    disk.image(image, self.rng, share)
                    cut = Cut(index, share, frozenset(answered), dict(taken))
                    waiting.append(pool.submit(self.look, image, cut, self.images % 20 == 0))
                if self.images % 500 < self.arguments.images:
                    print(f"{index}/{len(entries)} entries, {self.images} images, {len(self.losses)} losses", file=sys.stderr)
                while len(waiting) > 50:
                    waiting.pop(0).result()
            for job in waiting:
                job.result()

    def look(self, image, cut, deliver):
        """One image; removed unless it fails."""
        config = image / "config.toml"
        write_config(config, embedded(image / "store"), self.scene.targets)
        try:
            # Before the first answer the store may be incomplete: then only the relay itself can open it.
            is_sound = not cut.answered or self.compare(image, config, cut)
            if is_sound and (deliver or not cut.answered):
                self.started += 1
                asyncio.run(self.deliver(image, config, cut))
        except Exception as error:  # told with its cut; the others are still looked at
            self.broken.append(f"{cut}: {error if isinstance(error, Failure) else repr(error)} ({image})")
            return
        shutil.rmtree(image)

    def compare(self, image, config, cut):
        """Notes what is lost. Returns whether the store is one that a start goes on with."""
        code, told = ledger.audit(self.arguments.binary, config)
        if code != 0 and "no store" in str(told):
            self.losses.append((image.name, len(cut.answered), f"{cut}: there is no store any more"))
            return True
        # A disk that lies loses the log behind the record of the last commit, which tells.
        if self.arguments.lie and code == 1 and "damage" in told:
            self.losses.append((image.name, 0, f"{cut}: {told['damage']}"))
            return False
        expect(code, 0, f"exit code of `wxrelay audit`, which says {told}")
        found = ledger.Ledger(image / "store")
        expect(found.check, "ok", "quick_check")
        missing = found.missing(cut.answered)
        if missing:
            what = f"{cut}: answered 200 and not in the ledger, {ledger.some(missing)}"
            self.losses.append((image.name, len(missing), what))
        for number, event in cut.taken.items():
            if found.numbers.get(event) != number and number not in missing:
                what = f"{cut}: push {number} was delivered as {event}, which is not in the ledger"
                self.losses.append((image.name, 0, what))
        return True

    async def deliver(self, image, config, cut):
        """Starts the relay on the image and lets it deliver the rest, to targets of its own."""
        scene = Scene(self.arguments.binary, image / "again", self.scene.library)
        scene.store, scene.config, scene.seconds = image / "store", config, self.scene.seconds
        for target in scene.targets:
            await target.start()
        write_config(config, embedded(scene.store), scene.targets)
        before = ledger.Ledger(scene.store).deliveries if cut.answered else {}
        pending = {key for key, state in before.items() if state == 0}
        relay = scene.relay(watched=False)
        await relay.start()
        try:
            await relay.ready()
            expect_that(await scene.settled(relay), "the relay ended by itself")
            expect(await relay.stop(), 0, "exit code")
        except Ended as ended:
            raise Failure(f"the store does not open: {ended}") from None
        finally:
            await relay.kill()
            scene.close()
        named = {target.name: target for target in scene.targets}
        lost = [(event, name) for event, name in pending if event not in named[name].numbers]
        expect_that(not lost, f"pending before the restart and never delivered, {ledger.some(lost)}")
        states = Counter(ledger.Ledger(scene.store).deliveries.values())
        expect_that(set(states) <= {1}, f"deliveries by state {states}")
        code, told = ledger.audit(self.arguments.binary, config)
        expect(code, 0, f"exit code of `wxrelay audit` after the restart, which says {told}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--images", type=int, default=3, help="of each cut; the first has nothing that was not flushed")
    parser.add_argument("--lie", choices=["wal"], help="the control: the log is never flushed")
    parser.add_argument("--expect-loss", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parsed(parser)
    checks = Checks()
    folder = Path(tempfile.mkdtemp(prefix="wxrelay-powercut-"))
    scene = Scene(arguments.binary, folder / "recorded", shim.build(folder))
    checks.run("the session is recorded", lambda: asyncio.run(record(scene, arguments.lie and "-wal")))
    if checks.failed == 0:
        cut(checks, Cuts(arguments, folder, scene))
    if checks.failed:
        print(f"the recording and the failed images are kept in {folder}")
    else:
        shutil.rmtree(folder)
    return checks.close()


def cut(checks, cuts):
    begun = time.monotonic()
    checks.run("the power is cut after every change", cuts.go)
    losses, total = cuts.losses, len(cuts.scene.answered)
    print(f"{cuts.images} images, {cuts.started} of them started, {time.monotonic() - begun:.0f} s")
    images = len({image for image, _, _ in losses})
    print(f"images with a loss {images}, most lost in one {max((lost for _, lost, _ in losses), default=0)} of {total} answered pushes")
    checks.run("every image opens, adds up and delivers", lambda: expect_that(not cuts.broken, f"{len(cuts.broken)}: {cuts.broken[:3]}"))
    if cuts.arguments.expect_loss:
        checks.run("the control loses answered pushes", lambda: expect_that(losses, "nothing is lost: the model of the power cut is blind"))
    else:
        told = [what for _, _, what in losses[:3]]
        checks.run("no image lacks what was answered or delivered before", lambda: expect_that(not losses, f"{images} images: {told}"))


if __name__ == "__main__":
    sys.exit(main())
