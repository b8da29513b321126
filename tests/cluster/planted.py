"""The checker's own control: into a copy of a history one violation of each kind is planted, which its checker must find."""

from collections.abc import Iterator

from history import CHECKERS, Line, Lists
from wechat import is_scan


def planted(lists: Lists) -> Iterator[tuple[str, list[Line]]]:
    """(checker, the history with something in it that this one must find)."""
    lines = lists.lines
    number = next(number for number in lists.answered() if lists.events[number] and not is_scan(number))
    event = lists.events[number][0]
    attempt = next(line for line in lists.of["attempt"] if line["status"] == 200 and line["target"] == "ordered")
    twice = [{**attempt, "replica": "r0", "begun": time, "ended": time} for time in (1000.0, 1001.0)]
    answer = lists.answers(number)[0]
    yield "no answered push is lost", [line for line in lines if line is not event]
    yield "one push is one event", [*lines, {**event, "event": "evt_ffffffffffffffff"}]
    yield "an event has one id at every target", [*lines, {**attempt, "event": "evt_ffffffffffffffff"}]
    yield "every try of a push gets the same reply", [*lines, {**answer, "reply": "another [thanks]"}]
    yield (
        "every event is delivered to each of its targets",
        [{**line, "state": 2} if line is lists.of["delivery"][0] else line for line in lines],
    )
    yield "what was settled is not attempted again", [*lines, *twice]
    yield "the ledger is clean", [*lines, {"kind": "audit", "at": 0, "code": 0, "unaccounted": 1}]
    yield (
        "nothing waits for ever",
        [
            *lines,
            {"kind": "wait", "at": 0, "number": number, "event": event["event"], "target": "crm", "why": "planted"},
        ],
    )
    yield (
        "no push is given up while PostgreSQL can store it",
        [
            *lines,
            {**answer, "number": -1, "status": 503, "begun": 1000.0, "ended": 1000.0},
            {"kind": "given-up", "at": 1000.0, "number": -1},
        ],
    )
    yield "pushes get no other answers", [*lines, {**answer, "status": 400}]
    yield "a user's pushes are delivered in order", [*lines, {**next_of_user(lists), "begun": 0.0}]


def next_of_user(lists: Lists) -> Line:
    """An attempt of a push, before which another one of its user was answered."""
    answered = {number: lists.answers(number)[0]["ended"] for number in lists.answered()}
    return next(
        line
        for line in lists.of["attempt"]
        if line["target"] == "ordered"
        and line["number"] in answered
        and line["number"] - 997 in answered
        and answered[line["number"] - 997] < min(one["begun"] for one in lists.tries[line["number"]])
    )


def unnoticed(lists: Lists) -> list[str]:
    """The checkers that did not find what was planted for them."""
    return [
        name
        for name, lines in planted(lists)
        if len(list(CHECKERS[name](Lists(lines)))) <= len(list(CHECKERS[name](lists)))
    ]
