"""One scripted run over a store of its own: what faults.py and powercut.py repeat.

A scene knows what it pushed and what was answered, has its own targets, and writes both into the shim's log.
"""
import asyncio
import shutil
import sqlite3
import time
from pathlib import Path

import shim
import wechat
from ledger import DATABASE
from relay import Relay, embedded, targets_of, write_config
from rig import expect_that
from sender import push
from targets import Target

PATIENCE = 15.0  # seconds for what takes milliseconds
TURNED_AWAY = 4  # the number of the push whose first delivery to `flaky` is answered 500: the script's one retry


class Scene:
    """`folder` is its own; the store is in `folder`/disk/store, and the shim watches `folder`/disk."""

    def __init__(self, binary, folder, library):
        self.binary = binary
        self.folder = Path(folder)
        self.disk = self.folder / "disk"
        self.store = self.disk / "store"
        self.config = self.folder / "config.toml"
        self.library = library
        self.like = None
        self.seconds = []
        self.answered = {}
        self.statuses = []
        self.longest = 0.0  # seconds that a push took
        self.words = set()  # what `/readyz` said when a push was refused, and at the end
        self.hanging = False
        self.disk.mkdir(parents=True)
        self.log = shim.Log(self.folder / "log")
        self.targets = [
            Target("login", self.second_of, self._mood, sealed=True, told=self._told), Target("crm", self.second_of, self._mood, told=self._told),
            Target("flaky", self.second_of, self._flaky_mood, told=self._told)]

    def second_of(self, number):
        return self.seconds[number] if 0 <= number < len(self.seconds) else None

    async def open(self, like=None):
        """Starts the targets; with `like`, continues from a copy of that scene's store."""
        for target in self.targets:
            await target.start()
        write_config(self.config, embedded(self.store), self.targets)
        self.like = like
        if like:
            self.seconds, self.answered = list(like.seconds), dict(like.answered)
            for mine, theirs in zip(self.targets, like.targets):
                mine.ids, mine.numbers, mine.taken = dict(theirs.ids), dict(theirs.numbers), theirs.taken.copy()
            shutil.copytree(like.store, self.store, ignore=shutil.ignore_patterns("*.ballast"))

    def close(self):
        for target in self.targets:
            target.end()
        self.log.close()

    def relay(self, watched=True, **fault):
        """A relay over the store, with or without the shim."""
        environment = shim.environment(self.library, self.disk, self.log.path, **fault) if watched else None
        return Relay(self.binary, self.config, environment)

    async def push(self, address, number=None):
        """One try of a push, a new one unless its number is given; the status."""
        if number is None:
            number = len(self.seconds)
            self.seconds.append(int(time.time()))
        begun = time.monotonic()
        status = await push(address, wechat.clear_text(number, self.seconds[number]))
        self.longest = max(self.longest, time.monotonic() - begun)
        self.statuses.append(status)
        if status == 200:
            self.answered[number] = self.answered.get(number, 0) + 1
            self.log.note("answered", number)
        return status

    def unanswered(self):
        return [number for number in range(len(self.seconds)) if number not in self.answered]

    async def settled(self, relay):
        """Waits until no delivery is pending; False if the relay ends before."""
        deadline = time.monotonic() + PATIENCE
        while self._pending():
            if not relay.is_alive():
                return False
            expect_that(time.monotonic() < deadline, f"{self._pending()} deliveries are still pending after {PATIENCE:.0f} s")
            await asyncio.sleep(0.005)
        return True

    def untaken(self):
        """(push, target) of answered pushes that did not reach their target."""
        named = {target.name: target for target in self.targets}
        return [(number, name) for number in self.answered for name in targets_of(number) if not named[name].taken[number]]

    def has_pending(self):
        """Whether a delivery is pending; also if the store cannot be read."""
        try:
            return self._pending() > 0
        except sqlite3.Error:
            return True

    def _pending(self):
        connection = sqlite3.connect(f"file:{self.store / DATABASE}?mode=ro", uri=True)
        try:
            return connection.execute("SELECT count(*) FROM delivery WHERE state = 0").fetchone()[0]
        finally:
            connection.close()

    def _mood(self, _):
        return "hang" if self.hanging else None

    def _flaky_mood(self, number):
        if number == TURNED_AWAY and not self.targets[2].taken[number] and not self.targets[2].failed:
            return "500"
        return self._mood(number)

    def _told(self, number, event):
        self.log.note("taken", number, event)
