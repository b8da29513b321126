"""The disk after a power cut: replays the shim's log and makes images of the disk.

Conservative, so that it may lose what a real disk would have kept, and never the other way round:

- What was in a file when it was flushed is on disk. Of every block written since, the disk has the content of some moment
  between the flush and the cut, each block for itself; blocks are of 4 KiB, or of 512 bytes (torn pages).
- A file is as long as the blocks that reached the disk make it. A cut-off (ftruncate) that did not reach the disk takes
  with it what was written behind it.
- A name (created, removed, renamed) is on disk when its folder was flushed; of the changes since, the disk has the first
  few, in order, as a journal would.
- SQLite's -shm file and the ballast are left out: nothing in them has to outlive a crash.
"""
import os
from pathlib import Path

LEFT_OUT = ("-shm", ".ballast")


class File:
    def __init__(self, durable=b""):
        self.durable = bytearray(durable)
        self.pending = []  # (offset, data), or (length, None) for a cut-off

    def flush(self):
        for change in self.pending:
            apply(self.durable, *change)
        self.pending = []

    def content(self, rng, share):
        """With every block the newest with the probability `share`, else of an earlier moment."""
        if not self.pending or share == 1:
            whole = bytearray(self.durable)
            for change in self.pending:
                apply(whole, *change)
            return whole
        if share == 0:
            return self.durable
        return self._mixed(rng, share, rng.choice([4096, 4096, 512]))

    def _mixed(self, rng, share, size):
        found = bytearray(self.durable)
        versions, reached = {}, {}  # by block: how many writes there are, how many of them reached the disk
        for offset, data in self.pending:
            for block in blocks(offset, data, size):
                versions[block] = versions.get(block, 0) + 1
        for block, count in versions.items():
            reached[block] = count if rng.random() < share else rng.randrange(count) if rng.random() < 0.5 else 0
        met, end = {}, None
        for offset, data in self.pending:
            if data is None:
                if end is None and rng.random() < share:
                    apply(found, offset, None)
                else:
                    end = offset if end is None else min(end, offset)
                continue
            for block in blocks(offset, data, size):
                met[block] = met.get(block, 0) + 1
                start, stop = max(offset, block * size), min(offset + len(data), (block + 1) * size)
                if met[block] <= reached[block] and (end is None or start < end):
                    apply(found, start, data[start - offset:stop - offset])
        return found


def blocks(offset, data, size):
    return range(offset // size, (offset + len(data) - 1) // size + 1) if data else ()


def apply(content, offset, data):
    """Writes into a content, or cuts it off."""
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset:offset + len(data)] = data


class Folder:
    def __init__(self):
        self.durable = {}  # name -> File or Folder
        self.now = {}
        self.pending = []  # (name, File, Folder or None)

    def change(self, name, what):
        self.pending.append((name, what))
        put(self.now, name, what)

    def flush(self):
        for change in self.pending:
            put(self.durable, *change)
        self.pending = []

    def content(self, rng, share):
        found = dict(self.durable)
        count = len(self.pending)
        for change in self.pending[:count if rng.random() < share else rng.randrange(count + 1) if share else 0]:
            put(found, *change)
        return found


def put(names, name, what):
    if what is None:
        names.pop(name, None)
    else:
        names[name] = what


class Disk:
    """The folder `root` as a disk has it, fed with the log's entries one after the other."""

    def __init__(self, root, store=None):
        """`store`: a copy of root/store as it was when the log began, if there was one."""
        self.root_path = str(root)
        self.root = Folder()
        self.open = {}  # id of the open file -> File or Folder
        if store:
            folder = Folder()
            self.root.change("store", folder)
            for path in sorted(path for path in store.iterdir() if not path.name.endswith(LEFT_OUT)):
                folder.change(path.name, File(path.read_bytes()))
            folder.flush()
            self.root.flush()

    def feed(self, entry):
        if entry.kind == "open":
            parent, name = self._at(entry.path)
            found = self.root if parent is None else parent.now.get(name)
            if found is None:
                found = File()
                parent.change(name, found)
            self.open[entry.id] = found
            if entry.flags & os.O_TRUNC:
                found.pending.append((0, None))
        elif entry.kind == "write":
            self.open[entry.id].pending.append((entry.offset, entry.data))
        elif entry.kind == "truncate":
            self.open[entry.id].pending.append((entry.length, None))
        elif entry.kind == "sync":
            self.open[entry.id].flush()
        elif entry.kind in ("unlink", "mkdir"):
            parent, name = self._at(entry.path)
            parent.change(name, Folder() if entry.kind == "mkdir" else None)
        elif entry.kind == "rename":
            (parent, name), (new_parent, new_name) = self._at(entry.path), self._at(entry.data.decode())
            new_parent.change(new_name, parent.now[name])
            parent.change(name, None)

    def _at(self, path):
        """The folder that a path is in, and its name there; (None, "") for the root."""
        names = [name for name in path[len(self.root_path):].split("/") if name]
        if not names:
            return None, ""
        found = self.root
        for name in names[:-1]:
            found = found.now[name]
        return found, names[-1]

    def image(self, folder, rng, share):
        """Writes the state after the cut into a folder. `share` 0: nothing that was not flushed; 1: everything."""
        self._write(self.root, Path(folder), rng, share)

    def _write(self, what, path, rng, share):
        path.mkdir(exist_ok=True)
        for name, found in sorted(what.content(rng, share).items()):
            if isinstance(found, Folder):
                self._write(found, path / name, rng, share)
            elif not name.endswith(LEFT_OUT):
                (path / name).write_bytes(found.content(rng, share))
