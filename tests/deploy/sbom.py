"""The SBOM of the release: `sbom.py FILE`, compared with cargo's list of linked crates."""
import json
import os
import re
import subprocess
import sys
import tomllib
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
from checks import Checks, expect, expect_that  # noqa: E402


class Sbom:
    def __init__(self, file):
        self.text = Path(file).read_text()

    def checks(self):
        yield "it is CycloneDX 1.5, of this version of wxrelay", self.format
        yield "every crate that is linked is in it, and no other, with licence, checksum and package URL", self.crates
        yield "its dependencies are complete, and name no crate that is not in it", self.dependencies
        yield "the same source gives the same file: no serial number, the commit's time, no path of this machine", self.same

    def format(self):
        self.told = json.loads(self.text)
        expect((self.told["bomFormat"], self.told["specVersion"]), ("CycloneDX", "1.5"), "format")
        own = self.told["metadata"]["component"]
        version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
        expect((own["type"], own["name"], own["version"]), ("application", "wxrelay", version), "what it is of")

    def crates(self):
        line = ["cargo", "tree", "--locked", "-e", "normal", "--target", host(), "--prefix", "none", "--format", "{p}\t{l}"]
        tree = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        # `name v1.2.3 (proc-macro)\tlicence`, and `(*)` behind what was told before.
        linked = {tuple(re.match(r"(\S+) v(\S+).*?\t(.*?)(?: \(\*\))?$", line).groups()) for line in tree}
        linked = {(name, version): licence for name, version, licence in linked if name != "wxrelay"}
        expect_that(len(linked) > 100, f"only {len(linked)} crates are linked")
        locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
        locked = {(crate["name"], crate["version"]): crate.get("checksum") for crate in locked}
        named = {(crate["name"], crate["version"]): crate for crate in self.told["components"]}
        expect(sorted(linked.keys() ^ named.keys()), [], "crates that are linked and not named, or named and not linked")
        for (name, version), licence in sorted(linked.items()):
            crate, what = named[name, version], f"{name} {version}"
            expect(crate["purl"], f"pkg:cargo/{name}@{version}", f"package URL of {what}")
            expect(crate["hashes"], [{"alg": "SHA-256", "content": locked[name, version]}], f"checksum of {what}")
            # An old way to write OR.
            expect(crate["licenses"], [{"expression": licence.replace("/", " OR ")}], f"licence of {what}")
            expect(crate["scope"], "required", f"scope of {what}")
        return f"{len(linked)} crates"

    def dependencies(self):
        refs = {crate["bom-ref"] for crate in self.told["components"]} | {self.told["metadata"]["component"]["bom-ref"]}
        needs = {entry["ref"]: entry.get("dependsOn", []) for entry in self.told["dependencies"]}
        expect(set(needs), refs, "crates with dependencies")
        expect({need for all_of in needs.values() for need in all_of} - refs, set(), "needed and not named")

    def same(self):
        expect_that("serialNumber" not in self.told, "it has a serial number")
        epoch = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
        expect(datetime.fromisoformat(self.told["metadata"]["timestamp"]).timestamp(), float(epoch), "time")
        for place in (ROOT, Path.home(), os.environ.get("CARGO_HOME", Path.home() / ".cargo")):
            expect_that(f"{place}/" not in self.text, f"{place} is in it")
        expect(sorted(set(re.findall(r"file://[^\"#?&]*", self.text))), ["file://.", "file:///wxrelay"], "paths")


def host():
    said = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    return re.search(r"^host: (.*)$", said, re.M).group(1)


def git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main():
    checks, sbom = Checks(), Sbom(sys.argv[1])
    for name, check in sbom.checks():
        checks.run(name, check)
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
