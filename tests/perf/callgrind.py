"""Programs under callgrind, and what it counted: instructions by function, as the program's code names them."""
import re
from collections import Counter

# Names in full at every mention, no line numbers relative to others: what a few lines can read.
COMMAND = ["valgrind", "--tool=callgrind", "--compress-strings=no", "--compress-pos=no"]
# This much of a name identifies a function; names can be a page long.
NAME = 140


def counted(file):
    """Two Counters by function: the instructions it took itself, without those it called, and how often it was called."""
    instructions, calls, function, called = Counter(), Counter(), None, None
    for line in file.read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "fn":
            function = plain(value)
        elif key == "cfn":
            called = plain(value)
        elif key == "calls":
            calls[called] += int(value.split()[0])
        elif line[:1].isdigit():
            if called is None:
                instructions[function] += int(line.split()[1])
            called = None  # the line after `calls` is what the function called took
    return instructions, calls


def plain(name):
    """Without the hash that changes in each build, and without callgrind's number of a recursion."""
    return re.sub(r"::h[0-9a-f]{16}|'\d+$", "", name)[:NAME]
