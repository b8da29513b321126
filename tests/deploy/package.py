"""The Debian package: `package.py DEB`. Its contents, and what remains after installing, upgrading, removing and purging.

dpkg works on a root of its own, an empty folder: this machine's packages, files and services are not touched. The
maintainer scripts run with DPKG_ROOT, and so leave systemd alone. Needs root, as dpkg does.
"""
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from checks import Checks, expect, expect_that  # noqa: E402

COMMANDS = ("serve", "check", "events", "dead", "audit", "healthcheck")
UNITS = ("wxrelay.service", "wxrelay.socket", "wxrelay-http.socket", "wxrelay-watch.service", "wxrelay-watch.timer")


class Package:
    def __init__(self, deb, folder):
        self.deb, self.folder = deb, Path(folder)
        self.root = self.folder / "root"
        (self.root / "var/lib/dpkg/info").mkdir(parents=True)
        (self.root / "var/lib/dpkg/updates").mkdir()
        (self.root / "var/lib/dpkg/status").touch()

    def checks(self):
        yield "the package installs into an empty root", self.installed
        yield "the binary runs, and the service starts it by a name that is found", self.runs
        yield "a manual page for each command, and completions that the shell can read", self.pages
        yield "the units of the repository are in it, and nothing of it can be written by others", self.files
        yield "it has an SBOM of its own version", self.made_of
        yield "an upgrade keeps configuration, secrets, edited conffiles and the store", self.upgraded
        yield "removing keeps configuration and store, and takes the binary", self.removed
        yield "installed again, it finds both", self.again
        yield "purging leaves nothing", self.purged

    def installed(self):
        self.dpkg("--install", self.deb)
        expect(self.state(), "install ok installed", "state")
        # What `wxrelay init` and the service make.
        self.kept = {"etc/wxrelay/config.toml": "# mine", "etc/wxrelay/token": "secret", "var/lib/private/wxrelay/events.db": "events"}
        for name, text in self.kept.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def runs(self):
        done = subprocess.run([self.root / "usr/bin/wxrelay", "--version"], capture_output=True, text=True, timeout=30)
        version = re.search(r'^version = "(.*)"', (HERE.parent.parent / "Cargo.toml").read_text(), re.M).group(1)
        expect((done.returncode, done.stdout.strip()), (0, f"wxrelay {version}"), "exit code and version")
        unit = (self.root / "usr/lib/systemd/system/wxrelay.service").read_text()
        expect_that("\nExecStart=wxrelay serve " in unit, "systemd looks for the binary in /usr/local/bin and /usr/bin")

    def pages(self):
        for command in COMMANDS:
            page = gzip.open(self.root / f"usr/share/man/man1/wxrelay-{command}.1.gz", "rt").read()
            expect_that(".SH OPTIONS" in page, f"wxrelay-{command}.1 has no options")
        bash = self.root / "usr/share/bash-completion/completions/wxrelay"
        done = subprocess.run(["bash", "-c", f'source "{bash}" && complete -p wxrelay'], capture_output=True, text=True, timeout=30)
        expect(done.returncode, 0, done.stderr)
        for name in ("zsh/vendor-completions/_wxrelay", "fish/vendor_completions.d/wxrelay.fish"):
            expect_that("healthcheck" in (self.root / "usr/share" / name).read_text(), f"{name} knows the commands")
        return f"{len(list((self.root / 'usr/share/man/man1').iterdir()))} pages"

    def files(self):
        for unit in UNITS:
            shipped = (HERE.parent.parent / "deploy/systemd" / unit).read_text()
            expect((self.root / "usr/lib/systemd/system" / unit).read_text(), shipped, unit)
        notify = (self.root / "usr/lib/systemd/system/wxrelay-notify@.service").read_text()
        started = re.search(r"^ExecStart=/(\S+) %i$", notify, re.M).group(1)
        expect_that(os.access(self.root / started, os.X_OK), f"the script that notifies is at {started}")
        expect_that((self.root / "usr/share/doc/wxrelay/examples/systemd/notify.conf").exists(), "the drop-in for OnFailure")
        drop_in = self.root / "usr/lib/systemd/system/wxrelay.service.d/older-systemd.conf"
        expect_that("Type=notify\n" in drop_in.read_text(), "the drop-in for Debian 12")
        listed = subprocess.run(["dpkg-deb", "--contents", self.deb], capture_output=True, text=True, check=True).stdout.splitlines()
        foreign = [line for line in listed if line.split()[1] not in ("root/root", "0/0") or line[8] == "w"]
        expect(foreign, [], "files of others, or that others may write")
        expect(oct((self.root / "etc/wxrelay/env").stat().st_mode)[-3:], "600", "mode of env, which may hold secrets")
        return f"{len(listed)} entries"

    def made_of(self):
        told = json.loads((self.root / "usr/share/doc/wxrelay/wxrelay.cdx.json").read_text())
        version = subprocess.run(["dpkg-deb", "--field", self.deb, "Version"], capture_output=True, text=True, check=True).stdout
        own = told["metadata"]["component"]
        expect((told["bomFormat"], own["name"], own["version"]), ("CycloneDX", "wxrelay", version.split("-")[0]), "what it is of")
        return f"{len(told['components'])} components"

    def upgraded(self):
        self.kept["etc/wxrelay/env"] = "# edited by an operator\n"
        (self.root / "etc/wxrelay/env").write_text(self.kept["etc/wxrelay/env"])
        unpacked, newer = self.folder / "unpacked", self.folder / "newer.deb"
        subprocess.run(["dpkg-deb", "--raw-extract", self.deb, unpacked], check=True)
        control = unpacked / "DEBIAN/control"
        control.write_text(re.sub(r"^Version: .*$", "Version: 99.0-1", control.read_text(), flags=re.M))
        with open(unpacked / "usr/share/doc/wxrelay/README.md", "a") as readme:
            readme.write("newer\n")
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", "-Zgzip", "-z1", unpacked, newer], check=True, stdout=subprocess.DEVNULL)
        self.dpkg("--install", newer)
        self.still_there()

    def removed(self):
        self.dpkg("--remove", "wxrelay")
        expect(self.state(), "deinstall ok config-files", "state")
        expect_that(not (self.root / "usr/bin/wxrelay").exists(), "the binary is gone")
        self.still_there()

    def again(self):
        self.dpkg("--install", self.deb)
        self.still_there()

    def purged(self):
        link = self.root / "etc/systemd/system/multi-user.target.wants/wxrelay.service"
        link.parent.mkdir(parents=True)
        link.symlink_to("/usr/lib/systemd/system/wxrelay.service")
        self.dpkg("--purge", "wxrelay")
        left = [path for path in self.root.rglob("*wxrelay*")]
        expect(left, [], "what is left")
        expect_that("Package: wxrelay" not in (self.root / "var/lib/dpkg/status").read_text(), "dpkg does not list it")

    def still_there(self):
        found = {name: path.read_text() if (path := self.root / name).exists() else None for name in self.kept}
        expect(found, self.kept, "what is not the package's")

    def state(self):
        status = (self.root / "var/lib/dpkg/status").read_text()
        return re.search(r"^Package: wxrelay\nStatus: (.*)$", status, re.M).group(1)

    def dpkg(self, *words):
        # An empty root has none of the libraries that the package depends on.
        line = ["dpkg", f"--root={self.root}", "--force-script-chrootless", "--force-depends", "--log=/dev/null", *map(str, words)]
        # Closed: a question about a conffile would be an error, not a wait.
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        expect_that(done.returncode == 0, f"dpkg {words[0]}: {done.stdout}{done.stderr}")


def main():
    if os.geteuid() != 0 or not shutil.which("dpkg"):
        sys.exit("package.py needs root and dpkg")
    with tempfile.TemporaryDirectory(prefix="wxrelay-package-") as folder:
        checks, package = Checks(), Package(Path(sys.argv[1]).resolve(), folder)
        for name, check in package.checks():
            checks.run(name, check)
        return checks.close()


if __name__ == "__main__":
    sys.exit(main())
