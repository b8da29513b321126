"""Checks that are counted: a line for each, and `N passed, N failed` at the end."""


class Failure(AssertionError):
    """A check that does not hold."""


def expect(found, expected, what):
    if found == expected:
        return
    if isinstance(found, str) and isinstance(expected, str) and max(len(found), len(expected)) > 200:
        at = next((i for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]), min(len(found), len(expected)))
        near = slice(max(0, at - 60), at + 60)
        raise Failure(f"{what}: from character {at} on, expected ...{expected[near]!r}..., found ...{found[near]!r}...")
    raise Failure(f"{what}: expected {expected!r}, found {found!r}")


def expect_that(holds, what):
    if not holds:
        raise Failure(what)


class Checks:
    """Runs checks one after the other and prints a line for each."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def run(self, name, check):
        try:
            note = check()
        except Exception as error:  # a check that breaks is a check that fails; the others still run
            self.failed += 1
            kind = "" if isinstance(error, Failure) else f"{type(error).__name__}: "
            print(f"FAIL {name}: {kind}{error}", flush=True)
        else:
            self.passed += 1
            print(f"ok   {name}" + (f" ({note})" if note else ""), flush=True)

    def close(self):
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 0 if self.failed == 0 and self.passed > 0 else 1
