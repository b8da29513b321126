"""The builds that are counted: the release, and the parts by the same compiler settings, crates and features.

`cargo bench` itself would take the features that tests add to the relay's crates, and so build most of them again, and the
relay too, which a bench may want to run. So the parts are built as the program of a package made here, in the same target
folder: what it depends on is there from the release, and one crate is left to compile and link.
"""
import json
import shutil
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = ROOT / "target"
PROFILE = ["--profile", "dist"]
# callgrind needs the functions' names. As an argument to the last crate only: the profile's key is for all crates.
NAMED = ["--", "-C", "strip=none"]


def parts():
    """`benches/parts.rs`, with its names."""
    folder = TARGET / "perf"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "Cargo.toml"
    manifest.write_text(package(tomllib.loads((ROOT / "Cargo.toml").read_text())))
    shutil.copy(ROOT / "Cargo.lock", folder)  # cargo takes out what is not needed, and leaves the versions
    return cargo("parts", "rustc", *PROFILE, "--manifest-path", str(manifest), "--target-dir", str(TARGET), *NAMED)


def package(ours):
    """Its manifest: versions, features and profile are the relay's."""
    crates = ours["dev-dependencies"] | ours["dependencies"]
    lines = ["[package]", 'name = "wxrelay-parts"', 'version = "0.0.0"', f"edition = {json.dumps(ours['package']['edition'])}",
             "[workspace]", "[[bin]]", 'name = "parts"', f"path = {json.dumps(str(ROOT / 'benches' / 'parts.rs'))}",
             "[dependencies]", f"wxrelay = {{ path = {json.dumps(str(ROOT))} }}"]
    lines += [f"{name} = {inline(crates[name])}" for name in ("bytes", "divan", "tempfile", "tokio")]
    for profile in ("release", "dist"):
        lines += [f"[profile.{profile}]", *(f"{key} = {inline(value)}" for key, value in ours["profile"][profile].items())]
    return "\n".join(lines) + "\n"


def inline(value):
    """TOML of a value, which is JSON's but for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def relay():
    """The release as it is shipped."""
    return cargo("wxrelay", "build", "--locked", *PROFILE, "--bin", "wxrelay")


def relay_named(folder):
    """The release with its names, moved to the folder: others take what is in `target/dist` for the release."""
    binary = shutil.copy(cargo("wxrelay", "rustc", "--locked", *PROFILE, "--bin", "wxrelay", *NAMED), folder)
    relay()
    return binary


def cargo(name, command, *words):
    """The executable of that name that cargo builds."""
    line = ["cargo", command, "--quiet", "--message-format=json-render-diagnostics", *words]
    messages = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    built = [message for message in map(json.loads, messages) if message.get("executable")]
    return next(message["executable"] for message in built if message["target"]["name"] == name)
