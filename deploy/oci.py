#!/usr/bin/env python3
"""Writes the container image as an OCI archive for several architectures, without a Docker daemon.

    oci.py --output FILE --version V [--revision R] [--epoch SECONDS] ARCHITECTURE=BINARY...

ARCHITECTURE is amd64 or arm64. What the image holds and starts is read from the last stage of deploy/docker/Dockerfile.
Static binaries and CA certificates are all it needs. The same input gives the same bytes: times are SECONDS, by default
SOURCE_DATE_EPOCH. Use the archive with `docker load -i`, `podman load -i` or `skopeo copy oci-archive:FILE ...`.
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shlex
import struct
import sys
import tarfile
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# The number of an architecture in an ELF header.
MACHINES = {"amd64": 62, "arm64": 183}
UNITS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Stage:
    """The last stage of the Dockerfile: what is copied, and the container's configuration."""

    def __init__(self, dockerfile):
        text = re.sub(r"\\\n\s*", "", dockerfile.read_text())
        last = text[text.rindex("\nFROM "):].strip().splitlines()
        if last[0] != "FROM scratch":
            sys.exit(f"{dockerfile}: the last stage is not FROM scratch")
        self.copies, self.config = [], {"Env": []}
        for line in last[1:]:
            if line and not line.startswith("#"):
                word, rest = line.split(" ", 1)
                self.add(word, rest)

    def add(self, word, rest):
        if word == "COPY":
            words = shlex.split(rest)
            flags = dict(flag[2:].split("=", 1) for flag in words if flag.startswith("--"))
            self.copies.append((words[-2], words[-1], flags))
        elif word == "ENV":
            self.config["Env"].append(rest)
        elif word == "USER":
            self.config["User"] = rest
        elif word == "VOLUME":
            self.config["Volumes"] = {place: {} for place in rest.split()}
        elif word == "EXPOSE":
            self.config["ExposedPorts"] = {f"{port}/tcp": {} for port in rest.split()}
        elif word in ("ENTRYPOINT", "CMD"):
            self.config[{"ENTRYPOINT": "Entrypoint", "CMD": "Cmd"}[word]] = json.loads(rest)
        elif word == "HEALTHCHECK":
            flags, command = rest.split(" CMD ")
            flags = dict(flag[2:].split("=") for flag in flags.split())
            self.config["Healthcheck"] = {
                "Test": ["CMD", *json.loads(command)],
                **{name: nanoseconds(flags[flag]) for flag, name in
                   (("interval", "Interval"), ("timeout", "Timeout"), ("start-period", "StartPeriod")) if flag in flags},
                "Retries": int(flags["retries"]),
            }
        else:
            sys.exit(f"{DOCKERFILE}: {word} is not known here")


class Layout:
    """The files of an OCI image layout."""

    def __init__(self):
        self.files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def blob(self, kind, content, **more):
        digest = hashlib.sha256(content).hexdigest()
        self.files[f"blobs/sha256/{digest}"] = content
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content), **more}

    def document(self, kind, value, **more):
        return self.blob(kind, json.dumps(value, separators=(",", ":"), sort_keys=True).encode(), **more)

    def write(self, path, epoch):
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for name, content in sorted(self.files.items()):
                add(archive, name, epoch, content)


def nanoseconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(number) * UNITS[unit]


def add(archive, name, epoch, content=None, mode=0o644, owner=(0, 0)):
    """A file, or a folder where there is no content."""
    entry = tarfile.TarInfo(name)
    entry.mtime, entry.mode, (entry.uid, entry.gid) = epoch, mode, owner
    if content is None:
        entry.type, content = tarfile.DIRTYPE, b""
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def layer(source, place, flags, binary, epoch):
    """The tar of one COPY: the parent folders and the file or folder itself."""
    # What the first stage of the Dockerfile makes.
    contents = {"/wxrelay": (binary, 0o755), str(CERTIFICATES): (CERTIFICATES, 0o644), "/store": (None, 0o755)}
    file, mode = contents[source]
    mode = int(flags.get("chmod", f"{mode:o}"), 8)
    owner = tuple(int(part) for part in flags.get("chown", "0:0").split(":"))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        parts = place.strip("/").split("/")
        for depth in range(1, len(parts)):
            add(archive, "/".join(parts[:depth]), epoch, mode=0o755)
        add(archive, "/".join(parts), epoch, file and file.read_bytes(), mode, owner)
    return packed.getvalue()


def image(layout, stage, architecture, binary, labels, epoch):
    """Adds the image of one architecture; returns the descriptor of its manifest."""
    header = binary.read_bytes()[:20]
    if header[:4] != b"\x7fELF" or struct.unpack_from("<H", header, 18)[0] != MACHINES[architecture]:
        sys.exit(f"{binary} is no program for {architecture}")
    created = datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    layers, diffs, history = [], [], []
    for source, place, flags in stage.copies:
        packed = layer(source, place, flags, binary, epoch)
        diffs.append(f"sha256:{hashlib.sha256(packed).hexdigest()}")
        layers.append(layout.blob(LAYER, gzip.compress(packed, 9, mtime=0)))
        history.append({"created": created, "created_by": f"COPY {source} {place}"})
    platform = {"os": "linux", "architecture": architecture}
    config = layout.document(CONFIG, {
        **platform, "created": created, "config": {**stage.config, "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": diffs}, "history": history,
    })
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, "annotations": labels}
    return layout.document(MANIFEST, manifest, platform=platform)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--version", required=True)
    parser.add_argument("--revision")
    parser.add_argument("--epoch", type=int, default=os.environ.get("SOURCE_DATE_EPOCH"))
    parser.add_argument("binaries", nargs="+", metavar="ARCHITECTURE=BINARY")
    args = parser.parse_args()
    if args.epoch is None:
        parser.error("--epoch or SOURCE_DATE_EPOCH is needed")
    binaries = dict(binary.split("=", 1) for binary in args.binaries)
    if unknown := binaries.keys() - MACHINES:
        parser.error(f"{', '.join(unknown)}: expected {' or '.join(MACHINES)}")
    if not CERTIFICATES.exists():
        sys.exit(f"{CERTIFICATES} is missing: install ca-certificates")
    labels = {"org.opencontainers.image.title": "wxrelay", "org.opencontainers.image.version": args.version,
              "org.opencontainers.image.licenses": "Apache-2.0"}
    if args.revision:
        labels["org.opencontainers.image.revision"] = args.revision
    layout, stage = Layout(), Stage(DOCKERFILE)
    manifests = [image(layout, stage, architecture, Path(binary), labels, args.epoch) for architecture, binary in sorted(binaries.items())]
    # One reference that leads to every architecture: tools choose their own.
    nested = layout.document(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, "annotations": labels})
    nested["annotations"] = {"org.opencontainers.image.ref.name": args.version, "io.containerd.image.name": f"docker.io/library/wxrelay:{args.version}"}
    layout.files["index.json"] = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [nested]}).encode()
    layout.write(args.output, args.epoch)
    print(f"{args.output}: {', '.join(sorted(binaries))}, {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
