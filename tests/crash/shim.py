"""Builds shim.c, gives the environment that drives it, reads its log."""
import os
import struct
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from relay import HERE

HEAD = struct.Struct("=IIIIQQQ")
KINDS = [None, "open", "write", "sync", "truncate", "unlink", "rename", "mkdir", "fault", "sent", "answered", "taken"]
GROUPS = ["write", "sync", "truncate", "name"]


@dataclass
class Entry:
    """One line of the log. `id` is that of the open file, `path` a name, `data` the bytes written or a second name."""

    kind: str
    path: str
    data: bytes
    flags: int
    id: int
    offset: int
    length: int


def build(folder):
    """Compiles the shim into a folder."""
    library = Path(folder) / "shim.so"
    command = [os.environ.get("CC", "cc"), "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread", "-o", str(library),
               str(HERE / "shim.c")]
    subprocess.run(command, check=True)
    return library


def environment(library, folder, log, at=None, do=None, calls=1, lie=None):
    """The environment of a relay: `at` is a (group, call number)."""
    found = {"LD_PRELOAD": str(library), "SHIM_DIR": str(folder), "SHIM_LOG": str(log)}
    if at:
        found |= {"SHIM_AT": f"{at[0]}:{at[1]}", "SHIM_DO": do, "SHIM_FOR": str(calls)}
    return found | ({"SHIM_LIE": lie} if lie else {})


class Log:
    """The shim's log; the harness writes into it too, so that all entries have one order."""

    def __init__(self, path):
        self.path = path
        self.output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, kind, number, text=""):
        """`answered`: the harness has a 200 for the push; `taken`: a target has accepted the event `text`."""
        path = text.encode()
        os.write(self.output, HEAD.pack(KINDS.index(kind), len(path), 0, 0, number, 0, 0) + path)

    def close(self):
        os.close(self.output)

    def entries(self):
        found, at = self.path.read_bytes(), 0
        while at + HEAD.size <= len(found):
            kind, path, second, flags, number, offset, length = HEAD.unpack_from(found, at)
            at += HEAD.size
            name = found[at:at + path].decode()
            yield Entry(KINDS[kind], name, found[at + path:at + path + second], flags, number, offset, length)
            at += path + second


def call_counts(entries):
    """How many calls of each group had an effect."""
    names = Counter(entry.kind for entry in entries)
    created, seen = 0, set()
    for entry in entries:
        if entry.kind == "open" and entry.flags & os.O_CREAT and entry.path not in seen:
            seen.add(entry.path)
            created += 1
        elif entry.kind == "unlink":
            seen.discard(entry.path)
    return {"write": names["write"], "sync": names["sync"], "truncate": names["truncate"],
            "name": created + names["unlink"] + names["rename"] + names["mkdir"]}
