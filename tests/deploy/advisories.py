"""The gate for known weaknesses: `advisories.py CARGO_DENY`. It fails for an advisory about a locked crate, and for no other.

deny.toml is the repository's; the database of advisories is a small one, made here.
"""
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
from checks import Checks, expect, expect_that  # noqa: E402

URL = "https://advisories.invalid/database"  # git is told that it is the folder made here
ADVISORY = """```toml
[advisory]
id = "{id}"
package = "{crate}"
date = "2026-01-01"
{more}
[versions]
patched = [{patched}]
```

# Made for this check

It is about nothing.
"""


class Gate:
    def __init__(self, deny, folder):
        self.deny, self.folder, self.made = deny, Path(folder), 0
        locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
        self.locked = {crate["name"]: crate["version"] for crate in locked}

    def checks(self):
        yield "an advisory about a locked crate fails it", lambda: self.refused("hyper", "")
        yield "also one about a crate that only others need", lambda: self.refused("h2", "")
        yield "one that the locked version fixes does not", lambda: self.passed("hyper", f'">= {self.locked["hyper"]}"')
        yield "nor one about a crate that is not here", lambda: self.passed("openssl", "")
        yield "an unmaintained direct dependency fails it", lambda: self.refused("hyper", "", 'informational = "unmaintained"')

    def refused(self, *advisory):
        code, told, name = self.check(*advisory)
        expect_that(code != 0 and name in told and "advisories FAILED" in told, f"exit code {code}: {told}")

    def passed(self, *advisory):
        code, told, _ = self.check(*advisory)
        expect_that(code == 0 and "advisories ok" in told, f"exit code {code}: {told}")

    def check(self, crate, patched, more=""):
        self.made += 1
        folder, name = self.folder / str(self.made), f"RUSTSEC-2026-{9000 + self.made}"
        database = folder / "database"
        file = database / "crates" / crate / f"{name}.md"
        file.parent.mkdir(parents=True)
        file.write_text(ADVISORY.format(id=name, crate=crate, patched=patched, more=more))
        for words in (["init", "--quiet", "--initial-branch=main"], ["add", "."], ["commit", "--quiet", "--message=One"]):
            identity = ["-c", "user.name=check", "-c", "user.email=check@advisories.invalid"]
            subprocess.run(["git", *identity, *words], cwd=database, check=True)
        settings = (ROOT / "deny.toml").read_text()
        expect(settings.count("[advisories]\n"), 1, "tables in deny.toml")
        # Yanked crates are looked up in the registry, which this check does not use.
        own = f'[advisories]\ndb-path = "{folder}/fetched"\ndb-urls = ["{URL}"]\ndisable-yank-checking = true\n'
        (folder / "deny.toml").write_text(settings.replace("[advisories]\n", own))
        git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{database}.insteadOf", "GIT_CONFIG_VALUE_0": URL}
        line = [self.deny, "--config", folder / "deny.toml", "check", "--hide-inclusion-graph", "advisories"]
        done = subprocess.run(line, cwd=ROOT, env=os.environ | git, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr, name


def main():
    with tempfile.TemporaryDirectory(prefix="wxrelay-advisories-") as folder:
        checks, gate = Checks(), Gate(Path(sys.argv[1]).resolve(), folder)
        for name, check in gate.checks():
            checks.run(name, check)
        return checks.close()


if __name__ == "__main__":
    sys.exit(main())
