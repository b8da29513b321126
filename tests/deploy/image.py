"""The container image without Docker: `image.py BINARY`, with a static build.

Builds the root that the last stage of the Dockerfile describes, and runs what it names as a container would: chroot,
the image's user and environment, a read-only root, a volume; with compose.yaml's environment on top. Needs root.
"""
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from checks import Checks, expect, expect_that  # noqa: E402
from ports import free_port  # noqa: E402

DOCKER = HERE.parent.parent / "deploy" / "docker"
WAIT = 30.0  # seconds
# `mount` is the container's: a read-only root, and the volume in it. $0 root, $1 volume, $2 its place, $3 user.
CONTAINER = """
set -e
mount --bind "$0" "$0"
mount -o remount,bind,ro "$0"
mount --bind "$1" "$0$2"
root=$0 user=$3
shift 3
exec chroot --userspec="$user" "$root" "$@"
"""


class Image:
    """The last stage of the Dockerfile, as far as it can be built without Docker."""

    def __init__(self, dockerfile, binary, root):
        lines = re.sub(r"\\\n\s*", "", dockerfile.read_text()).splitlines()
        lines = [line for line in lines if line and not line.startswith("#")]
        last = max(place for place, line in enumerate(lines) if line.startswith("FROM "))
        expect(lines[last], "FROM scratch", "the last stage")
        self.root, self.environment = root, {}
        built = {"/wxrelay": binary, "/etc/ssl/certs/ca-certificates.crt": Path("/etc/ssl/certs/ca-certificates.crt"), "/store": None}
        for line in lines[last + 1:]:
            word, rest = line.split(" ", 1)
            if word == "COPY":
                self.copy(shlex.split(rest), built)
            elif word == "ENV":
                name, value = rest.split("=", 1)
                self.environment[name] = value
            elif word in ("USER", "VOLUME", "EXPOSE"):
                setattr(self, word.lower(), rest)
            elif word in ("ENTRYPOINT", "CMD"):
                setattr(self, word.lower(), json.loads(rest))
            else:
                expect(word, "HEALTHCHECK", "an instruction that is known here")
                self.healthcheck = json.loads(rest.split(" CMD ")[1])

    def copy(self, words, built):
        flags, (source, place) = [word for word in words if word.startswith("--")], words[-2:]
        expect_that("--from=build" in flags and source in built, f"COPY {source} is what the first stage has made")
        target = Path(f"{self.root}{place}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if built[source] is None:
            target.mkdir(mode=0o700)
        else:
            shutil.copy(built[source], target)


class Container:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, Path(folder)
        self.serving = None

    def checks(self):
        yield "the binary is static", self.static
        yield "the Dockerfile's last stage can be made from the files of its first stage", self.made
        yield "compose.yaml mounts only existing files, at paths that the files name", self.mounts
        yield "`docker run wxrelay init` writes a configuration that `check` accepts with compose's environment", self.configured
        yield "the health check fails while nothing runs", lambda: expect(self.run(*self.image.healthcheck)[0], 1, "exit code")
        yield "the entry point gets ready on a read-only root, and the health check passes", self.ready
        yield "it runs as the image's user", self.user
        yield "a push is stored in the volume, and the audit is clean", self.pushed
        yield "SIGTERM stops it with exit code 0", self.stopped

    def static(self):
        said = subprocess.run(["file", "-b", self.binary], capture_output=True, text=True).stdout
        expect_that("static" in said, said.strip())
        return said.split(",")[2].strip() + said.split(",")[3]

    def made(self):
        self.root, self.volume = self.folder / "root", self.folder / "volume"
        self.root.mkdir(mode=0o755)
        os.chmod(self.folder, 0o755)
        self.image = Image(DOCKER / "Dockerfile", self.binary, self.root)
        self.uid = int(self.image.user.split(":")[0])
        expect((self.uid, self.image.volume), (65532, "/var/lib/wxrelay"), "user and volume")
        for place in (self.volume, self.root / "etc/wxrelay"):
            place.mkdir()
            os.chown(place, self.uid, self.uid)
        return f"{sum(path.is_file() for path in self.root.rglob('*'))} files"

    def mounts(self):
        compose = (DOCKER / "compose.yaml").read_text()
        mounts = re.findall(r"^      - (\.[^:]*):([^:\n]*):ro$", compose, re.M)
        expect_that(len(mounts) >= 6, f"only {mounts}")
        # The README tells the operator to create `etc`.
        missing = [source for source, _ in mounts if not source.startswith("./etc") and not (DOCKER / source).is_file()]
        expect(missing, [], "mounts of missing files")
        places = {place for _, place in mounts}
        prometheus, dashboards = (DOCKER / "prometheus.yml").read_text(), (DOCKER / "grafana/dashboards.yaml").read_text()
        named = {f"/etc/prometheus/{re.search(r'rule_files:.  - (.*?)$', prometheus, re.S | re.M).group(1)}",
                 re.search(r"credentials_file: (.*)", prometheus).group(1),
                 re.search(r"path: (.*)", dashboards).group(1) + "/wxrelay.json"}
        expect(named - places, set(), "places that the files name and nothing is mounted at")
        dockerfile = re.search(r"context: (.*)\n\s*dockerfile: (.*)", compose).groups()
        expect_that((DOCKER / dockerfile[0] / dockerfile[1]).is_file(), f"{dockerfile} is there")
        services = set(re.findall(r"^  (\w+):$", compose, re.M))
        asked = re.search(r'targets: \["(\w+):9180"\]', prometheus).group(1)
        shown = re.search(r"url: http://(\w+):9090", (DOCKER / "grafana/datasource.yaml").read_text()).group(1)
        expect_that({asked, shown} <= services, f"{asked}, {shown} are services of {services}")
        return f"{len(mounts)} mounts"

    def configured(self):
        listen = f"127.0.0.1:{free_port()}"
        code, told = self.run(*self.image.entrypoint, "init", "--dir", "/etc/wxrelay", "--app-id", "wx0123456789abcdef", "--listen", listen)
        expect(code, 0, f"exit code of init: {told}")
        token = (self.root / "etc/wxrelay/token").read_text().strip()
        expect_that(len(token) > 2 and token not in told, "the token is written, and not shown where no terminal is")
        (self.root / "etc/wxrelay/admin-token").write_text("0123456789abcdef0123456789abcdef\n")
        environment = dict(re.findall(r"^      (WXRELAY__\w+): ['\"](.*)['\"]$", (DOCKER / "compose.yaml").read_text(), re.M))
        expect(len(environment), 2, "variables in compose.yaml")
        self.image.environment |= environment
        code, told = self.run(*self.image.entrypoint, "check", contained=True)
        expect(code, 0, f"exit code of check: {told}")
        # For the run, a port that nobody else has, on loopback.
        self.image.environment["WXRELAY__ADMIN__LISTEN"] = f"127.0.0.1:{free_port()}"

    def ready(self):
        words = [str(self.root), str(self.volume), self.image.volume, self.image.user]
        command = ["unshare", "--mount", "sh", "-c", CONTAINER, *words, *self.image.entrypoint, *self.image.cmd]
        self.log = open(self.folder / "log", "wb")
        self.serving = subprocess.Popen(command, env=self.image.environment | {"PATH": os.environ["PATH"]}, stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + WAIT
        while self.run(*self.image.healthcheck)[0] != 0:
            said = (self.folder / "log").read_text()[-1500:]
            expect_that(self.serving.poll() is None and time.monotonic() < deadline, f"not ready: {said}")
            time.sleep(0.1)

    def user(self):
        status = Path(f"/proc/{self.serving.pid}/status").read_text()
        expect(re.search(r"Uid:\s+(\d+)\s+(\d+)", status).groups(), (str(self.uid), str(self.uid)), "user")

    def pushed(self):
        code, told = self.run(*self.image.entrypoint, "simulate", "text", "hello")
        expect(code, 0, f"exit code of simulate: {told}")
        expect_that(any(self.volume.iterdir()), "the volume holds the store")
        # A command beside the relay finds the store where the image has it.
        code, told = self.run(*self.image.entrypoint, "audit", "--json", contained=True)
        audit = json.loads(told)
        expect((code, audit["events"], audit["unaccounted"]), (0, 1, 0), "exit code, events, unaccounted")

    def stopped(self):
        self.serving.send_signal(signal.SIGTERM)
        expect(self.serving.wait(WAIT), 0, "exit code")

    def run(self, *command, contained=False):
        """As `docker run --rm`, or with the volume."""
        line = ["chroot", f"--userspec={self.image.user}", str(self.root), *command]
        if contained:
            words = [str(self.root), str(self.volume), self.image.volume, self.image.user]
            line = ["unshare", "--mount", "sh", "-c", CONTAINER, *words, *command]
        done = subprocess.run(line, env=self.image.environment | {"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=WAIT)
        return done.returncode, done.stdout

    def end(self):
        if self.serving and self.serving.poll() is None:
            self.serving.kill()
            self.serving.wait()


def main():
    if os.geteuid() != 0:
        sys.exit("image.py needs root, for chroot and mount")
    with tempfile.TemporaryDirectory(prefix="wxrelay-image-") as folder:
        checks, container = Checks(), Container(Path(sys.argv[1]).resolve(), folder)
        try:
            for name, check in container.checks():
                checks.run(name, check)
        finally:
            container.end()
        return checks.close()


if __name__ == "__main__":
    sys.exit(main())
