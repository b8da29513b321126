"""What happened in a run, line by line, and whether it was allowed: `history.py FILE`.

Checkers as Jepsen has for sets, unique ids and queues, over three lists: what the sender was answered, what the targets
were sent, and what the store holds at the end. A line is a JSON object; `at` and all other times are seconds of one clock.

| kind | facts |
|---|---|
| try | a try of a push: number, begun, ended, status, reply (in clear; empty: `success`), relay (that answered) |
| given-up | a push that WeChat has tried three times: number |
| attempt | at a target: target, number, event, replica, begun, ended, status (null: not answered), reply |
| lag | of this program, which had no time for the targets: begun, ended |
| start | of a replica: replica, offset (seconds that its clock is ahead), window (seconds of the reply window, 0 for none) |
| fault | name, subjects (machines), begun, ended |
| log | a warning of a replica: replica, message, and its fields |
| event | in the store at the end: number, event, reply, sound (its text is what was pushed) |
| delivery | in the store at the end: event, target, state, attempts |
| wait | a delivery that waits at the end: event, target, why |
| audit | code, and what `wxrelay audit` says |
"""

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "crash"))

import wechat  # noqa: E402

Line = dict[str, Any]

ORIGIN = time.monotonic()
SHOWN = 40  # lines of one violation, at most
DELIVERED = 1
# Faults after which a delivery that a target took may be attempted again: its outcome was not stored, or not known.
LOSES_OUTCOMES = {"kill", "freeze", "expel", "cut-store", "cut-targets", "isolate", "restart"}
# Faults that keep every replica from storing a push, and the seconds until it is over.
STORES_NOTHING = {"fail-over", "crash", "cut-standby", "stall-standby", "sessions", "lock-table"}
# Those of one replica at a time, which the others do without. Two of them at once may be all that HAProxy tries.
ONE_REPLICA = {"kill", "freeze", "expel", "restart", "cut-store", "isolate"}
RECOVERS = 3.0
# Seconds from the answer of a target to the settlement, on a busy machine, and that an attempt takes before it.
SETTLED_WITHIN = 6.0
TAKEN_OVER = "taken over"  # in the log line of it
UNSTORED = "reply not stored in time"  # logged of a reply that went out all the same: another try may not find it
THAWED = 2.0  # seconds in which a replica that was frozen may send what it had begun
SILENT = 20.0  # seconds that a replica has been silent, at most, when it is taken over without another fault


def now() -> float:
    """The clock of all times here."""
    return round(time.monotonic() - ORIGIN, 4)


class History:
    """The lines, which are also written to a file."""

    def __init__(self, path: Path) -> None:
        self.lines: list[Line] = []
        self.file = path.open("w")

    def note(self, kind: str, **facts: Any) -> None:
        line = {"kind": kind, "at": now(), **facts}
        self.lines.append(line)
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self.file.close()


class Groups(dict[Any, list[Line]]):
    """Lines by a key; none for others, which asking does not make known."""

    def __missing__(self, key: Any) -> list[Line]:
        return []


class Lists:
    """The lines by what the checkers look for."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.of: dict[str, list[Line]] = defaultdict(list)
        for line in lines:
            self.of[line["kind"]].append(line)
        self.tries = grouped(sorted(self.of["try"], key=lambda line: line["ended"]), "number")
        self.attempts = grouped(sorted(self.of["attempt"], key=lambda line: line["begun"]), "target", "number")
        self.events = grouped(self.of["event"], "number")
        numbers = {line["event"]: line["number"] for line in self.of["event"]}
        # Not every line of them is logged.
        self.unstored = {numbers.get(line.get("event")) for line in self.of["log"] if line["message"] == UNSTORED}
        self.unstored |= {line["number"] for line in self.of["event"] if not line["reply"]}
        self.deliveries = {(line["event"], line["target"]): line for line in self.of["delivery"]}

    def answers(self, number: int) -> list[Line]:
        return [line for line in self.tries[number] if line["status"] == 200]

    def wait(self, target: str, number: int) -> list[float]:
        """The seconds from the answer of a push to its delivery, in a list; none where one of them is missing."""
        answers, taken = self.answers(number), first_taken(self, target, number)
        return [max(0.0, taken - answers[0]["ended"])] if answers and taken is not None else []

    def answered(self) -> list[int]:
        return [number for number in self.tries if self.answers(number)]

    def story(self, number: int) -> str:
        """All that happened to a push, and the faults and starts beside it."""
        mine = self.tries[number] + [line for key, lines in self.attempts.items() if key[1] == number for line in lines]
        since, until = min(map(begin, mine)), max(line["ended"] for line in mine)
        ids = {line["event"] for line in mine if "event" in line}
        mine += [
            line
            for line in self.of["delivery"] + self.of["wait"]
            if line["event"] in ids and line.get("state") != DELIVERED
        ]
        mine += [line for line in self.of["log"] if line.get("event") in ids]
        mine += [line for line in self.of["fault"] if line["ended"] >= since - 2 and line["begun"] <= until]
        mine += [line for line in self.of["start"] if since - 30 <= line["at"] <= until]
        mine.sort(key=begin)
        return "".join(f"\n      {brief(line)}" for line in mine[:SHOWN])


def grouped(lines: list[Line], *names: str) -> Groups:
    found = Groups()
    for line in lines:
        key = tuple(line[name] for name in names)
        found.setdefault(key if len(names) > 1 else key[0], []).append(line)
    return found


def begin(line: Line) -> float:
    return float(line["begun"] if "begun" in line else line["at"])


def brief(line: Line) -> str:
    """A line for people."""
    facts = {
        key: value
        for key, value in line.items()
        if key not in ("kind", "at", "begun", "ended", "number", "timestamp", "target", "level")
    }
    if facts.get("reply"):
        facts["reply"] = re.sub(r"(?s).*<Content><!\[CDATA\[(.*?)\]\]>.*", r"\1", facts["reply"])
    ended = f" to {line['ended']:8.3f}" if "ended" in line else ""
    return f"{begin(line):8.3f}{ended} {line['kind']} {line.get('target', '')} {json.dumps(facts, ensure_ascii=False)}"


def lost(lists: Lists) -> Iterator[str]:
    """Set: every push answered 200 is in the store."""
    for number in lists.answered():
        if not lists.events[number]:
            yield f"push {number} was answered 200 and is not stored:{lists.story(number)}"


def one_event(lists: Lists) -> Iterator[str]:
    """Unique ids: one push is one event, whose text is what was pushed."""
    for number, events in lists.events.items():
        if len({line["event"] for line in events}) > 1:
            yield f"push {number} is {len(events)} events:{lists.story(number)}"
        if number not in lists.tries or not all(line["sound"] for line in events):
            yield f"event {events[0]['event']}: its text was never pushed"


def one_id(lists: Lists) -> Iterator[str]:
    """Unique ids: every target sees a push under the id of its event."""
    owners: dict[str, int] = {}
    for (target, number), attempts in lists.attempts.items():
        if number is None:
            yield f"{target} was sent what nobody has pushed: {attempts[0]}"
            continue
        ids = {line["event"] for line in attempts}
        if len(ids) > 1 or ids != {line["event"] for line in lists.events[number]}:
            yield f"push {number} came to {target} as {sorted(ids)}:{lists.story(number)}"
        for event in ids:
            if owners.setdefault(event, number) != number:
                yield f"event {event} was push {owners[event]} and push {number} at {target}"


def same_reply(lists: Lists) -> Iterator[str]:
    """Every 200 of a push carries the same reply: the fixed one, or one that the bot gave to this push, or none.

    That it got none is stored after the answer. Where that fails, a later try may bring the reply.
    """
    for number in lists.answered():
        replies = {line["reply"] for line in lists.answers(number)}
        excused = number in lists.unstored or untold(lists, number)
        if len(replies) > 1 and not (len(replies - {""}) == 1 and excused):
            yield f"push {number} was answered with {len(replies)} replies:{lists.story(number)}"
        if not wechat.is_scan(number) and not all("[thanks]" in reply for reply in replies):
            yield f"push {number} was answered without its fixed reply:{lists.story(number)}"
        given = [text(line["reply"]) for line in lists.attempts["bot", number] if line["reply"]]
        strange = [
            reply for reply in replies if reply and wechat.is_scan(number) and not any(one in reply for one in given)
        ]
        if strange:
            yield f"push {number} was answered with a reply that the bot did not give, {strange[0]!r}:{lists.story(number)}"


def untold(lists: Lists, number: int) -> bool:
    """Whether the answers without a reply came first, from replicas that could not store that then."""
    answers = lists.answers(number)
    bare = [line for line in answers if not line["reply"]]
    first_reply = min(line["begun"] for line in answers if line["reply"]) if len(bare) < len(answers) else 0.0
    return all(line["ended"] <= first_reply and any(hits(fault, line) for fault in lists.of["fault"]) for line in bare)


def hits(fault: Line, answer: Line) -> bool:
    """Whether a fault kept the replica that gave an answer from storing something within a second after it."""
    subjects_meet = fault["name"] in STORES_NOTHING or answer["relay"] in fault["subjects"]
    is_kind = fault["name"] in STORES_NOTHING | LOSES_OUTCOMES
    return is_kind and subjects_meet and fault["begun"] <= answer["ended"] + 1 and fault["ended"] >= answer["ended"]


def text(reply: str) -> str:
    return json.loads(reply)["reply"]["content"]


def in_order(lists: Lists, target: str = "ordered") -> Iterator[str]:
    """What was answered before a user's next push is taken by an ordered target before that one is attempted there."""
    users: dict[int, list[int]] = defaultdict(list)
    for number in lists.answered():
        users[number % 997].append(number)
    for numbers in users.values():
        taken = [(number, first_taken(lists, target, number)) for number in sorted(numbers)]
        for (earlier, done), (later, _) in zip(taken, taken[1:]):
            begun = lists.attempts[target, later][0]["begun"] if lists.attempts[target, later] else None
            was_answered = lists.answers(earlier)[0]["ended"] < min(line["begun"] for line in lists.tries[later])
            if was_answered and begun is not None and (done is None or done > begun):
                yield (
                    f"push {later} came to {target} before push {earlier} was taken, which was answered before:"
                    f"{lists.story(earlier)}{lists.story(later)}"
                )


def first_taken(lists: Lists, target: str, number: int) -> float | None:
    """When it was first taken. Two replicas may attempt it at once, and the later attempt be answered first."""
    return min((line["ended"] for line in lists.attempts[target, number] if line["status"] == 200), default=None)


def delivered(lists: Lists) -> Iterator[str]:
    """Queue: every event is settled as delivered to each of its targets, which took it."""
    for (event, target), line in lists.deliveries.items():
        number = line["number"]
        if line["state"] != DELIVERED or first_taken(lists, target, number) is None:
            yield f"push {number}, {event}, at {target}: state {line['state']}, {len(lists.attempts[target, number])} attempts:{lists.story(number)}"


def excuses(lists: Lists) -> list[tuple[str, float, float]]:
    """(replica, since, until): while an outcome that it had may have been lost. `*`: any replica."""
    found = [
        (subject, line["begun"], line["ended"])
        for line in lists.of["fault"]
        if line["name"] in LOSES_OUTCOMES
        for subject in line["subjects"]
    ]
    found += [("*", line["begun"], line["ended"]) for line in lists.of["lag"]]
    found += [
        (line["of"], line["at"] - SILENT, line["at"])
        for line in lists.of["log"]
        if TAKEN_OVER in line["message"] and line.get("of")
    ]
    return found


def repeated(lists: Lists) -> Iterator[str]:
    """Queue: what a target took is attempted again only where the replica that had its answer was lost, or thought lost."""
    known = excuses(lists)
    for (target, number), attempts in lists.attempts.items():
        takes = [line for line in attempts if line["status"] == 200]
        for again in [line for line in attempts if takes and line["begun"] > takes[0]["ended"]]:
            last = max((line for line in takes if line["ended"] < again["begun"]), key=lambda line: line["ended"])
            is_lost = any(
                who in (last["replica"], "*")
                and since <= last["ended"] + SETTLED_WITHIN
                and until >= last["begun"] - SETTLED_WITHIN
                for who, since, until in known
            )
            if not is_lost and not was_frozen(lists, again):
                yield f"push {number} was attempted at {target} again by {again['replica']}, which {last['replica']} had settled:{lists.story(number)}"


def was_frozen(lists: Lists, attempt: Line) -> bool:
    """Whether its replica was frozen until just before: what it had begun then, it finishes, whoever has taken over."""
    return any(
        line["name"] in ("freeze", "expel")
        and attempt["replica"] in line["subjects"]
        and line["ended"] - THAWED <= attempt["begun"] <= line["ended"] + THAWED
        for line in lists.of["fault"]
    )


def ledger_is_clean(lists: Lists) -> Iterator[str]:
    """`wxrelay audit` accounts for everything."""
    for line in lists.of["audit"]:
        found = {
            key: line.get(key) for key in ("code", "dead", "expired", "cancelled", "pending", "unaccounted", "drift")
        }
        if any(found.values()) or line.get("events") != sum(map(len, lists.events.values())):
            yield f"audit: {found}, events {line.get('events')} of {sum(map(len, lists.events.values()))}"


def nothing_waits(lists: Lists) -> Iterator[str]:
    """At rest nothing is free and due for 5 s, held by nobody, or held for an earlier one that is not there."""
    for line in lists.of["wait"]:
        number = line["number"]
        yield f"push {number}, {line['event']}, at {line['target']}: {line['why']}:{lists.story(number)}"


def accepted(lists: Lists) -> Iterator[str]:
    """WeChat gives a push up only where PostgreSQL stores nothing, whatever happens to one replica.

    With a reply window, the other replicas do not know of a try that was lost with one, nor that WeChat's third is the last.
    """
    waits = any(line["window"] for line in lists.of["start"])
    away = [(line["begun"], line["ended"] + RECOVERS) for line in lists.of["fault"] if line["name"] in STORES_NOTHING]
    away += [(line["begun"], line["ended"]) for line in lists.of["lag"]]
    out = [(line["begun"], line["ended"] + RECOVERS) for line in lists.of["fault"] if line["name"] in ONE_REPLICA]
    for line in lists.of["given-up"]:
        number = line["number"]
        tries = lists.tries[number]
        if waits and lists.events[number] and any(met(out, one) for one in tries):
            continue
        fine = [one for one in tries if not met(away, one) and len(met(out, one)) < 2]
        if fine:
            yield f"push {number} was given up, and nothing kept PostgreSQL from storing it at {fine[0]['begun']}:{lists.story(number)}"


def met(windows: list[tuple[float, float]], line: Line) -> list[tuple[float, float]]:
    return [window for window in windows if window[0] <= line["ended"] and window[1] >= line["begun"]]


def statuses(lists: Lists) -> Iterator[str]:
    """A push is answered 200, or with a status that says that the cluster could not."""
    for line in lists.of["try"]:
        # 408 is HAProxy's, when this program sent a push too slowly.
        if line["status"] not in (200, 408, 502, 503, 504, None):
            yield f"push {line['number']} was answered {line['status']}: {line}"


CHECKERS: dict[str, Callable[[Lists], Iterator[str]]] = {
    "no answered push is lost": lost,
    "one push is one event": one_event,
    "an event has one id at every target": one_id,
    "every try of a push gets the same reply": same_reply,
    "a user's pushes are delivered in order": in_order,
    "every event is delivered to each of its targets": delivered,
    "what was settled is not attempted again": repeated,
    "the ledger is clean": ledger_is_clean,
    "nothing waits for ever": nothing_waits,
    "no push is given up while PostgreSQL can store it": accepted,
    "pushes get no other answers": statuses,
}


def main() -> int:
    lists = Lists([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()])
    failed = 0
    for name, checker in CHECKERS.items():
        found = list(checker(lists))
        failed += bool(found)
        print(
            f"{'FAIL' if found else 'ok  '} {name}"
            + "".join(f"\n    {one}" for one in found[:5])
            + (f"\n    {len(found)} in all" if found else "")
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
