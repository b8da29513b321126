"""A disk that rots: `flips.py --flips N --seed S [--binary PATH]`.

A relay ends with delivered and pending events: by a kill, so that they are in the log, or by SIGTERM, so that they are in
the database. Then, for each fault, on a copy of its store: one bit is flipped at a random place of that file, or one of
the files is removed, renamed, cut or replaced, at rest or while a relay has it open. The relay is started as a supervisor would, `wxrelay store salvage` is
run, and everything is let through. Every push that was answered 200 must then have reached all its targets, or be named:
by the salvage, as a dead letter, or by `audit --deep`. A loss that nothing tells of is a silent one; of what stood only
in a file that is gone, the relay can tell that it is gone and not what it was.

Prints a table, and closes with `N passed, N failed`. A failure names its fault; `--only FAULT` repeats one.
"""
import argparse
import asyncio
import collections
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import wechat
from ledger import DATABASE, some
from relay import Ended, targets_of
from rig import Checks, expect_that, free_port, parsed
from scene import Scene

DELIVERED = 16  # pushes of which everything is delivered before the kill
PENDING = 24  # pushes after that, whose targets do not answer
STARTS = 4  # how often the supervisor starts the relay: a store that is moved aside may take two
PATIENCE = 6.0  # seconds without a delivery after which no more are expected
LOG = DATABASE + "-wal"

REST = {
    "missing-log": lambda store: (store / LOG).unlink(),
    "missing-database": lambda store: (store / DATABASE).unlink(),
    "empty-database": lambda store: (store / DATABASE).write_bytes(b""),
    "cut-log": lambda store: os.truncate(store / LOG, (store / LOG).stat().st_size // 2),
    "cut-database": lambda store: os.truncate(store / DATABASE, (store / DATABASE).stat().st_size // 2),
}
OPEN = {
    f"{what}-{name}": (lambda store, file=file, act=act: act(store / file))
    for name, file in [("database", DATABASE), ("log", LOG)]
    for what, act in [("unlink", Path.unlink), ("rename", lambda path: path.rename(str(path) + ".away")),
                      ("replace", lambda path: (shutil.copy(path, str(path) + ".copy"), os.replace(str(path) + ".copy", path)))]
}


def faults(rng, flips, killed, stopped):
    """The faults by name: where a bit is flipped is in the name, so that it can be repeated."""
    for number in range(flips):
        file = LOG if number % 2 else DATABASE
        base = killed if file == LOG else stopped
        place = rng.randrange((base.store / file).stat().st_size)
        yield f"flip:{file}:{place}:{rng.randrange(8)}"
    yield from REST
    yield from OPEN


def flip(store, name):
    _, file, place, bit = name.split(":")
    with open(store / file, "r+b") as disk:
        disk.seek(int(place))
        byte = disk.read(1)[0]
        disk.seek(int(place))
        disk.write(bytes([byte ^ 1 << int(bit)]))


async def filled(binary, folder, is_killed):
    """The store as the relay leaves it."""
    scene = Scene(binary, folder, None)
    await scene.open()
    relay = scene.relay(watched=False)
    await relay.start()
    address = await relay.ready()
    for _ in range(DELIVERED):
        expect_that(await scene.push(address) == 200, "a push was refused")
    expect_that(await scene.settled(relay), "the relay ended")
    scene.hanging = True
    for _ in range(PENDING):
        expect_that(await scene.push(address) == 200, "a push was refused")
    await (relay.kill() if is_killed else relay.stop())
    scene.hanging = False
    copy = Path(f"{folder}-read")
    shutil.copytree(scene.store, copy)
    scene.events = events(copy)
    return scene


class Fault:
    """One fault, on a copy of the store."""

    def __init__(self, binary, base, folder, name):
        self.base, self.name, self.binary = base, name, binary
        self.scene = Scene(binary, folder, None)
        self.relay = None
        self.errors = 0

    async def command(self, *arguments):
        """Runs a command of the relay; exit code and what it prints as JSON."""
        child = await asyncio.create_subprocess_exec(
            str(self.binary), *arguments, "--json", "-c", str(self.scene.config), stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL)
        text, _ = await asyncio.wait_for(child.communicate(), 120)
        try:
            return child.returncode, json.loads(text)
        except ValueError:
            return child.returncode, {}

    async def start(self):
        """As a supervisor: again, until one stays; None if none does."""
        for _ in range(STARTS):
            self.relay = self.scene.relay(watched=False)
            await self.relay.start()
            try:
                return await self.relay.ready()
            except Ended:
                self.errors += 1
        return None

    async def let_through(self):
        """Waits until everything is delivered, or nothing is any more; starts the relay again where it ends."""
        last, since = len(self.scene.untaken()), time.monotonic()
        while last and time.monotonic() - since < PATIENCE:
            if not self.relay.is_alive():
                self.errors += 1
                if await self.start() is None:
                    return
                since = time.monotonic()
            await asyncio.sleep(0.02)
            now = len(self.scene.untaken())
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > 0.5 and not self.scene.has_pending():
                return

    async def go(self):
        """What became of it, in words for the table."""
        scene = self.scene
        await scene.open(self.base)
        # The commands must know the relay's address.
        listen = f'[admin]\nlisten = "127.0.0.1:{free_port()}"'
        scene.config.write_text(scene.config.read_text().replace('[admin]\nlisten = "127.0.0.1:0"', listen))
        (scene.store / (DATABASE + "-shm")).unlink(missing_ok=True)
        if self.name.startswith("flip:"):
            flip(scene.store, self.name)
        elif self.name in REST:
            REST[self.name](scene.store)
        address = await self.start()
        if self.name in OPEN and address:
            OPEN[self.name](scene.store)
            for _ in range(5):
                await scene.push(address)
        if address:
            await self.let_through()
        aside = [path.name for path in scene.store.glob("damaged-*")]
        before, _ = await self.command("audit", "--deep")
        salvage_code, report = await self.command("store", "salvage")
        if address:
            await self.let_through()
        after, told = await self.command("audit", "--deep")
        _, dead = await self.command("dead", "ls")
        if self.relay.is_alive():
            self.errors += sum('"ERROR"' in line for line in self.relay.tail)
            await self.relay.kill()
        scene.close()
        return self.judge(aside, before or after, salvage_code, report, told, dead)

    def judge(self, aside, audited, salvage_code, report, told, dead):
        named = set()
        stores = report.get("stores", [])
        for store in stores:
            named.update(flaw["event"] for flaw in store["flaws"])
        named.update(finding.get("event") for finding in told.get("deep", {}).get("findings", []))
        letters = dead if isinstance(dead, list) else dead.get("dead", dead.get("dead_letters", []))
        named.update(letter.get("id") for letter in letters)
        ids = {}
        for target in [*self.base.targets, *self.scene.targets]:
            ids.update({number: event for event, number in target.numbers.items()})
        ids.update(self.base.events)
        lost = sorted({number for number, _ in self.scene.untaken()})
        unnamed = [number for number in lost if ids.get(number) not in named]
        is_found = bool(aside or audited or self.errors or salvage_code)
        return {
            "harmless": not lost and not is_found, "found": is_found, "moved aside": bool(aside),
            "salvaged": sum(store["stored"] for store in stores), "named unreadable": len(lost) - len(unnamed),
            "silently lost": 0 if is_found else len(unnamed), "lost without a name": len(unnamed) if is_found else 0,
            "which": unnamed, "folder": str(self.scene.folder),
        }


def events(store):
    """The ids of the events by number, by Python's sqlite3."""
    connection = sqlite3.connect(f"file:{store / DATABASE}?mode=ro", uri=True)
    rows = connection.execute("SELECT id, CAST(coalesce(clear, body) AS TEXT) FROM event").fetchall()
    connection.close()
    return {wechat.number_of(text): f"evt_{event:016x}" for event, text in rows}


async def run(arguments, folder, checks):
    rng = random.Random(arguments.seed)
    killed, stopped = [await filled(arguments.binary, folder / name, name == "killed") for name in ("killed", "stopped")]
    names = [arguments.only] if arguments.only else list(faults(rng, arguments.flips, killed, stopped))
    table = collections.defaultdict(collections.Counter)
    failed, silent = [], []
    for number, name in enumerate(names):
        base = stopped if name.startswith(f"flip:{DATABASE}:") else killed
        outcome = await Fault(arguments.binary, base, folder / str(number), name).go()
        kind = ":".join(name.split(":")[:2])
        table[kind]["faults"] += 1
        for key in ("harmless", "found", "moved aside", "salvaged", "named unreadable", "silently lost", "lost without a name"):
            table[kind][key] += int(outcome[key])
        if outcome["which"]:
            failed.append(f"{name}: {some(outcome['which'])}, {outcome['folder']}")
            silent += failed[-1:] if outcome["silently lost"] else []
        else:
            shutil.rmtree(outcome["folder"], ignore_errors=True)
        if sys.stderr.isatty():
            print(f"\r{number + 1} of {len(names)}", end="", file=sys.stderr)
    killed.close()
    stopped.close()
    columns = ["faults", "harmless", "found", "moved aside", "salvaged", "named unreadable", "silently lost", "lost without a name"]
    print(f"{'fault':24}" + "".join(f"{column:>21}" for column in columns))
    for kind, counts in table.items():
        print(f"{kind:24}" + "".join(f"{counts[column]:21}" for column in columns))
    checks.run("nothing is lost in silence", lambda: expect_that(not silent, "; ".join(silent)))
    # What stood only in a file that is gone has no name anywhere; a flipped bit leaves the ids.
    unnamed = [failure for failure in failed if failure.startswith("flip:")]
    checks.run("what a flipped bit costs is named", lambda: expect_that(not unnamed, "; ".join(unnamed)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=40, help="flipped bits, besides the other faults")
    parser.add_argument("--only", help="one fault, by its name")
    arguments = parsed(parser)
    checks = Checks()
    folder = Path(tempfile.mkdtemp(prefix="wxrelay-flips-"))
    asyncio.run(run(arguments, folder, checks))
    if not checks.failed:
        shutil.rmtree(folder, ignore_errors=True)
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
