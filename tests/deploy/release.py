"""The files of a release: `release.py FOLDER`, as deploy/release.sh writes them. Reads the container image by the OCI
specification alone, and compares it with the Dockerfile as image.py reads it.
"""
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
from checks import Checks, expect, expect_that  # noqa: E402
from image import DOCKER, Image  # noqa: E402

# The number in an ELF header, and the names of an architecture: in file names, Debian's and OCI's.
ARCHITECTURES = {62: ("x86_64", "amd64"), 183: ("aarch64", "arm64")}
SECONDS = {"ms": 0.001, "s": 1, "m": 60}


class Release:
    def __init__(self, folder, scratch):
        self.folder, self.scratch = Path(folder).resolve(), Path(scratch)
        self.version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
        self.archives = sorted(self.folder.glob("*.tar.gz"))
        self.image = self.folder / f"wxrelay-{self.version}-oci.tar"

    def checks(self):
        yield "SHA256SUMS has every file, and each is as it says", self.sums
        yield "an archive, a Debian package and an SBOM for each architecture", self.named
        for archive in self.archives:
            yield f"{archive.name}: a program of that architecture, pages, completions, examples, nothing of this machine", \
                lambda archive=archive: self.archive(archive)
        yield "the image: every blob is named by its digest and led to by the index", self.blobs
        yield "the image: each platform has its own program, and is what the Dockerfile says", self.platforms
        yield "the image: skopeo reads it, and copies each architecture", self.skopeo
        yield "the image: a second one of the same files has the same bytes", self.again
        yield "the image: two architectures are one reference, and a program of another architecture is refused", self.both

    def sums(self):
        lines = [line.split("  ") for line in (self.folder / "SHA256SUMS").read_text().splitlines()]
        files = {path.name for path in self.folder.iterdir()} - {"SHA256SUMS"}
        expect({name for _, name in lines}, files, "names")
        for digest, name in lines:
            expect(hashlib.sha256((self.folder / name).read_bytes()).hexdigest(), digest, name)
        return f"{len(lines)} files"

    def named(self):
        found = [archive.name for archive in self.archives]
        known = {f"wxrelay-{self.version}-{name}-linux.tar.gz": (name, debian) for name, debian in ARCHITECTURES.values()}
        expect_that(found and set(found) <= known.keys(), f"archives: {found}")
        for archive in found:
            name, debian = known[archive]
            deb = self.folder / f"wxrelay_{self.version}-1_{debian}.deb"
            fields = subprocess.run(["dpkg-deb", "--field", deb, "Package", "Version", "Architecture"], capture_output=True, text=True, check=True)
            expect(fields.stdout, f"Package: wxrelay\nVersion: {self.version}-1\nArchitecture: {debian}\n", deb.name)
            sbom = json.loads((self.folder / f"wxrelay-{self.version}-{name}-linux.cdx.json").read_text())
            expect((sbom["bomFormat"], sbom["metadata"]["component"]["version"]), ("CycloneDX", self.version), f"SBOM of {name}")
        return ", ".join(found)

    def archive(self, path):
        top = path.name.removesuffix(".tar.gz")
        with tarfile.open(path) as archive:
            entries = archive.getmembers()
            files = {entry.name.removeprefix(f"{top}/"): archive.extractfile(entry).read() for entry in entries if entry.isfile()}
        expect([entry.name for entry in entries if entry.name.split("/")[0] != top], [], "names outside of its folder")
        expect({(entry.uid, entry.gid) for entry in entries}, {(0, 0)}, "owners")
        expect(len({entry.mtime for entry in entries}), 1, "times")
        expect([entry.name for entry in entries if not (entry.isfile() or entry.isdir()) or entry.mode & 0o7022], [], "links, or files that others may write")
        expect([entry.name for entry in entries if "__pycache__" in entry.name or ".venv" in entry.name], [], "what is no part of it")
        machine = struct.unpack_from("<H", files["wxrelay"], 18)[0]
        expect_that(f"-{ARCHITECTURES[machine][0]}-" in path.name, f"the program is of {ARCHITECTURES[machine]}")
        expect(next(entry.mode for entry in entries if entry.name == f"{top}/wxrelay"), 0o755, "mode of the program")
        commands = set(re.findall(r"^\.TP\n\\fBwxrelay\\-(\w+)|wxrelay\\-(\w+)\(1\)", files["man/wxrelay.1"].decode(), re.M))
        commands = {first or second for first, second in commands} - {"help"}
        expect_that(len(commands) > 15, f"the manual names only {commands}")
        expect({f"man/wxrelay-{command}.1" for command in commands} - files.keys(), set(), "pages that are missing")
        for shell in ("bash", "zsh", "fish"):
            expect_that(b"healthcheck" in files[f"completions/wxrelay.{shell}"], f"completions of {shell}")
        expect_that({"LICENSE", "README.md", "config.toml.example", "wxrelay.cdx.json", "deploy/systemd/wxrelay.service"} <= files.keys(), f"{sorted(files)}")
        return f"{len(files)} files, {path.stat().st_size} bytes, program {len(files['wxrelay'])} bytes"

    def blobs(self):
        self.files = read_layout(self.image)
        expect(json.loads(self.files["oci-layout"]), {"imageLayoutVersion": "1.0.0"}, "oci-layout")
        led_to = set()

        def follow(descriptor):
            name = "blobs/" + descriptor["digest"].replace(":", "/")
            content = self.files[name]
            expect((f"sha256:{hashlib.sha256(content).hexdigest()}", len(content)), (descriptor["digest"], descriptor["size"]), name)
            led_to.add(name)
            if descriptor["mediaType"].endswith("+json") and "config" not in descriptor["mediaType"]:
                document = json.loads(content)
                expect((document["schemaVersion"], document["mediaType"]), (2, descriptor["mediaType"]), name)
                for part in [*document.get("manifests", []), *document.get("layers", []), *([document["config"]] if "config" in document else [])]:
                    follow(part)

        index = json.loads(self.files["index.json"])
        expect(len(index["manifests"]), 1, "references")
        expect(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], self.version, "its name")
        follow(index["manifests"][0])
        expect(self.files.keys() - led_to, {"oci-layout", "index.json"}, "files that nothing leads to")
        return f"{len(led_to)} blobs"

    def platforms(self):
        told = []
        for platform, config, layers in images(self.files):
            expect((platform["os"], config["os"], config["architecture"]), ("linux", "linux", platform["architecture"]), "platform")
            expect([f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers], config["rootfs"]["diff_ids"], "layers")
            entries = {}
            for layer in layers:
                with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
                    for entry in archive:
                        entries["/" + entry.name] = (entry, archive.extractfile(entry).read() if entry.isfile() else None)
            program = self.scratch / platform["architecture"]
            program.write_bytes(entries["/usr/local/bin/wxrelay"][1])
            machine = struct.unpack_from("<H", program.read_bytes(), 18)[0]
            expect(ARCHITECTURES[machine][1], platform["architecture"], "architecture of the program")
            self.as_dockerfile(program, config["config"], entries)
            told.append(f"{platform['architecture']} {sum(len(gzip.compress(layer, 1)) for layer in layers)} bytes")
        return ", ".join(told)

    def as_dockerfile(self, program, config, entries):
        root = self.scratch / f"root-{program.name}"
        root.mkdir()
        image = Image(DOCKER / "Dockerfile", program, root)
        made = {f"/{path.relative_to(root)}": path for path in root.rglob("*")}
        expect(entries.keys(), made.keys(), "files and folders")
        for name, path in made.items():
            entry, content = entries[name]
            expect(content, path.read_bytes() if path.is_file() else None, name)
            expect((entry.uid, entry.mode), (65532, 0o700) if name == image.volume else (0, 0o755 if path.is_dir() or path.samefile(root / "usr/local/bin/wxrelay") else 0o644), name)
        expect(dict(line.split("=", 1) for line in config["Env"]), image.environment, "environment")
        found = (config["User"], [*config["Volumes"]], [*config["ExposedPorts"]], config["Entrypoint"], config["Cmd"])
        expect(found, (image.user, [image.volume], [f"{image.expose}/tcp"], image.entrypoint, image.cmd), "user, volume, port, command")
        expect(config["Healthcheck"]["Test"], ["CMD", *image.healthcheck], "health check")
        flags = dict(re.findall(r"--(\S+)=(\S+)", re.search(r"^HEALTHCHECK (.*) CMD", (DOCKER / "Dockerfile").read_text(), re.M).group(1)))
        for flag, name in (("interval", "Interval"), ("timeout", "Timeout"), ("start-period", "StartPeriod")):
            number, unit = re.fullmatch(r"(\d+)(\D+)", flags[flag]).groups()
            expect(config["Healthcheck"][name] / 10**9, int(number) * SECONDS[unit], flag)
        expect(config["Healthcheck"]["Retries"], int(flags["retries"]), "retries")

    def skopeo(self):
        if not shutil.which("skopeo"):
            expect_that("CI" not in os.environ, "skopeo is not installed")
            return "not checked: skopeo is not installed"
        copy = self.scratch / "copy"
        line = ["skopeo", "copy", "--quiet", "--all", f"oci-archive:{self.image}", f"dir:{copy}"]
        done = subprocess.run(line, capture_output=True, text=True)
        expect((done.returncode, done.stderr), (0, ""), "skopeo")
        expect(len(list(copy.glob("*.manifest.json"))), len(list(images(self.files))), "manifests")

    def again(self):
        programs = [f"{path.name}={path}" for path in sorted(self.scratch.iterdir()) if path.is_file()]
        _, config, _ = next(images(self.files))
        labels = config["config"]["Labels"]
        epoch = int(subprocess.run(["date", "-d", config["created"], "+%s"], capture_output=True, text=True, check=True).stdout)
        second = self.scratch / "second.tar"
        done = oci("--output", second, "--version", self.version, "--revision", labels["org.opencontainers.image.revision"], "--epoch", epoch, *programs)
        expect(done.returncode, 0, done.stderr)
        expect_that(second.read_bytes() == self.image.read_bytes(), "the bytes differ")

    def both(self):
        """A program whose header has the other architecture's number stands for one of it."""
        own = next(path for path in sorted(self.scratch.iterdir()) if path.is_file() and path.name in ("amd64", "arm64"))
        other = {"amd64": "arm64", "arm64": "amd64"}[own.name]
        content = bytearray(own.read_bytes())
        struct.pack_into("<H", content, 18, next(number for number, names in ARCHITECTURES.items() if other in names))
        changed = self.scratch / "changed"
        changed.write_bytes(content)
        pair = self.scratch / "pair.tar"
        done = oci("--output", pair, "--version", "1", "--epoch", 0, f"{own.name}={own}", f"{other}={changed}")
        expect(done.returncode, 0, done.stderr)
        found = {platform["architecture"]: config["rootfs"]["diff_ids"] for platform, config, _ in images(read_layout(pair))}
        expect(found.keys(), {own.name, other}, "architectures")
        # The certificates and the volume are stored once.
        expect(sum(one == two for one, two in zip(*found.values())), len(found[other]) - 1, "layers that both have")
        refused = oci("--output", pair, "--version", "1", "--epoch", 0, f"{other}={own}")
        expect((refused.returncode, "no program for" in refused.stderr), (1, True), f"a wrong program: {refused.stderr}")


def oci(*words):
    return subprocess.run([sys.executable, ROOT / "deploy/oci.py", *map(str, words)], capture_output=True, text=True)


def read_layout(path):
    with tarfile.open(path) as archive:
        entries = archive.getmembers()
        expect([entry.name for entry in entries if not entry.isfile() or not stat.S_IMODE(entry.mode) == 0o644], [], "what is no plain file")
        return {entry.name: archive.extractfile(entry).read() for entry in entries}


def images(files):
    """The platform, the configuration and the unpacked layers of each image."""
    def blob(descriptor):
        return files["blobs/" + descriptor["digest"].replace(":", "/")]

    nested = json.loads(blob(json.loads(files["index.json"])["manifests"][0]))
    for descriptor in nested["manifests"]:
        manifest = json.loads(blob(descriptor))
        yield descriptor["platform"], json.loads(blob(manifest["config"])), [gzip.decompress(blob(layer)) for layer in manifest["layers"]]


def main():
    with tempfile.TemporaryDirectory(prefix="wxrelay-release-") as scratch:
        checks, release = Checks(), Release(sys.argv[1], scratch)
        for name, check in release.checks():
            checks.run(name, check)
        return checks.close()


if __name__ == "__main__":
    sys.exit(main())
