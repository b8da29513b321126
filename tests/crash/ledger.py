"""The comparison at the end: pushes answered 200, events in the ledger, events seen by the targets.

The ledger is read twice: by sqlite3, which knows nothing of the relay, and by `wxrelay audit`.
"""
import json
import sqlite3
import subprocess

from rig import expect, expect_that
from relay import targets_of
from wechat import clear_text, number_of

DATABASE = "wxrelay.db"


class Ledger:
    """What the store holds: event ids and texts, and the state of every delivery. No store holds nothing.

    `mode` is SQLite's: `rw` where a journal may have to be rolled back, as on an image.
    """

    def __init__(self, store, mode="ro"):
        self.check = "ok"
        self.numbers = {}  # event id -> number
        self.texts = {}  # number -> [clear text]
        self.deliveries = {}  # (event id, target) -> state
        if not (store / DATABASE).exists():
            return
        connection = sqlite3.connect(f"file:{store / DATABASE}?mode={mode}", uri=True)
        try:
            self.check = connection.execute("PRAGMA quick_check").fetchone()[0]
            if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'event'").fetchone():
                return
            for event, text in connection.execute("SELECT id, CAST(coalesce(clear, body) AS TEXT) FROM event"):
                number = number_of(text)
                self.numbers[f"evt_{event:016x}"] = number
                self.texts.setdefault(number, []).append(text)
            rows = connection.execute("SELECT event, name, state FROM delivery JOIN target ON no = target")
            self.deliveries = {(f"evt_{event:016x}", name): state for event, name, state in rows}
        finally:
            connection.close()

    def pending(self):
        return sum(state == 0 for state in self.deliveries.values())

    def missing(self, answered):
        """The answered pushes that no event is stored of."""
        return sorted(number for number in answered if number not in self.texts)


def audit(binary, config):
    """`wxrelay audit --json`; its exit code and what it says, with a damage that the next start would move aside."""
    run = subprocess.run([str(binary), "audit", "-c", str(config), "--json"], capture_output=True, text=True, timeout=120)
    try:
        damage = {"damage": run.stderr.strip()} if "damaged store" in run.stderr else {}
        return run.returncode, json.loads(run.stdout) | damage
    except ValueError:
        return run.returncode, {"error": (run.stdout + run.stderr).strip()}


def some(numbers):
    numbers = list(numbers)
    return f"{len(numbers)}: {numbers[:10]}{'...' if len(numbers) > 10 else ''}"


def checks(ledger, audited, sender, targets, finished_may_go=False):
    """The checks by name, each a callable that fails or gives a note.

    `finished_may_go`: the disk was full, and then what every target has taken makes room, once it is older than
    `dedup_window`.
    """
    named = {target.name: target for target in targets}
    code, told = audited

    def is_finished(number):
        return all(named[name].taken[number] for name in targets_of(number))

    gone = {number for number in ledger.missing(sender.answered) if finished_may_go and is_finished(number)}

    def answered_is_stored():
        missing = [number for number in ledger.missing(sender.answered) if number not in gone]
        expect_that(not missing, f"answered 200 and not in the ledger, {some(missing)}")
        return f"{len(sender.answered)} pushes, {len(ledger.numbers)} events, {len(gone)} made room"

    def one_event_per_content():
        twice = [number for number, texts in ledger.texts.items() if len(texts) != 1]
        expect_that(not twice, f"pushes with more than one event, {some(twice)}")
        strange = [event for event, number in ledger.numbers.items()
                   if number is None or sender.second_of(number) is None
                   or ledger.texts[number] != [clear_text(number, sender.second_of(number))]]
        expect_that(not strange, f"events whose text was never pushed, {some(strange)}")

    def stored_is_delivered():
        undelivered = []
        for event, number in ledger.numbers.items():
            for name in targets_of(number):
                if ledger.deliveries.get((event, name)) != 1 or not named[name].taken[number]:
                    undelivered.append((number, name, ledger.deliveries.get((event, name)), named[name].taken[number]))
        expect_that(not undelivered, f"(push, target, state in the ledger, times taken) of what is not delivered, {some(undelivered)}")
        due = sum(len(targets_of(number)) for number in ledger.texts)
        expect(len(ledger.deliveries), due, "deliveries in the ledger")
        return f"{due} deliveries"

    def same_id():
        for target in targets:
            expect_that(not target.wrong, f"{len(target.wrong)} contradictions: {target.wrong[:5]}")
            other = [event for event, number in target.numbers.items() if ledger.numbers.get(event) != number and number not in gone]
            expect_that(not other, f"{target.name} was sent events that are not in the ledger under that id, {some(other)}")
        return f"{sum(target.repeats() for target in targets)} repeats"

    def adds_up():
        expect(code, 0, f"exit code of `wxrelay audit`, which says {told}")
        found = {key: told[key] for key in ("events", "deliveries", "delivered", "dead", "expired", "cancelled", "pending",
                                            "unaccounted", "drift")}
        due = len(ledger.deliveries)
        expect(found, {"events": len(ledger.numbers), "deliveries": due, "delivered": due, "dead": 0, "expired": 0,
                       "cancelled": 0, "pending": 0, "unaccounted": 0, "drift": 0}, "what `wxrelay audit` counts")

    yield "the store is sound", lambda: expect(ledger.check, "ok", "quick_check")
    yield "every answered push is in the ledger", answered_is_stored
    yield "every content is one event", one_event_per_content
    yield "every event reached every one of its targets, and is settled as delivered", stored_is_delivered
    yield "what arrived is what was pushed, and repeats have the same event id", same_id
    yield "`wxrelay audit` adds up", adds_up
