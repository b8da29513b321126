"""Shared by all checks: processes whose JSON lines are read, and the count of checks (../checks.py).

Every wait has a deadline, every process is ended by its own pid, every port is the kernel's choice or ../ports.py's.
"""
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from checks import Checks, Failure, expect, expect_that  # noqa: E402, F401
from ports import free_port  # noqa: E402, F401

WAIT = 15.0  # seconds; what the peers do takes milliseconds, a busy machine is allowed more


class Process:
    """A child that writes JSON lines to one of its streams; `log` is a file for its standard error."""

    def __init__(self, name, command, stream="stdout", environment=None, log=None):
        self.name = name
        self.lines = []
        self.other = []  # lines that are no JSON, for the report of a failure
        self.arrived = threading.Condition()
        self.ended = False
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if stream == "stdout" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if stream == "stderr" else log,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        self.source = self.child.stdout if stream == "stdout" else self.child.stderr
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for text in self.source:
            with self.arrived:
                try:
                    self.lines.append(json.loads(text))
                except ValueError:
                    self.other.append(text.rstrip())
                self.arrived.notify_all()
        with self.arrived:
            self.ended = True
            self.arrived.notify_all()

    def mark(self):
        """How many lines there are now: what `since` takes."""
        with self.arrived:
            return len(self.lines)

    def since(self, mark):
        with self.arrived:
            return self.lines[mark:]

    def wait_for(self, predicate, what, since=0, count=1):
        """The first `count` lines from `since` on that `predicate` holds for."""
        deadline = time.monotonic() + WAIT
        with self.arrived:
            while True:
                found = [line for line in self.lines[since:] if predicate(line)]
                if len(found) >= count:
                    return found[:count]
                left = deadline - time.monotonic()
                if self.ended or left <= 0:
                    state = "ended" if self.ended else f"{WAIT:.0f} s passed"
                    tail = [json.dumps(line, ensure_ascii=False)[:600] for line in self.lines[-6:]] + self.other[-6:]
                    raise Failure(f"{self.name}: no {what}, {state}; last lines:\n  " + "\n  ".join(tail))
                self.arrived.wait(left)

    def port(self):
        """The port a peer of this folder says it listens on."""
        return self.wait_for(lambda line: "listening" in line, "port")[0]["listening"]

    def ask(self, request):
        """One line in, one line out."""
        mark = self.mark()
        self.child.stdin.write(json.dumps(request) + "\n")
        self.child.stdin.flush()
        answer = self.wait_for(lambda _: True, "answer", since=mark)[0]
        expect_that("error" not in answer, f"{self.name}: {answer.get('error')}")
        return answer

    def end(self):
        """Sends SIGTERM, and SIGKILL after the deadline; the exit code."""
        if self.child.poll() is None:
            self.child.terminate()
        try:
            code = self.child.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.child.kill()
            code = self.child.wait()
        self.reader.join(WAIT)
        return code
