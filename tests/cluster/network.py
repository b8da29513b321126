"""The machines of a cluster, and the links between them, each in a network namespace of its own on one bridge. Needs root.

A cut is silent, as one in a network is: no packet arrives, and nobody is told. It is an entry for the other machine's
address in the table of neighbours, with a hardware address that nobody has. So it needs no packet filter, and can have one
direction. A machine that is isolated has its link down. A slow one sends its packets through a program (DELAY) that keeps
each for a while: delays of the kernel (netem) are not compiled into every one.

Everything is below the namespace of this process, which `alone` gives it, and ends with it.
"""

import ctypes
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

BRIDGE = "10.77.0.1"  # our own address, which is the targets' and the sender's
NOBODY = "02:00:00:00:00:00"

DELAY = r"""
import fcntl, os, queue, struct, subprocess, sys, threading, time
seconds, peers = float(sys.argv[1]), sys.argv[2:]
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"slow0", 0x1001))  # TUNSETIFF: IP packets, without a header
for path, value in (("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/slow0/rp_filter", "0"), ("conf/slow0/accept_local", "1")):
    with open(f"/proc/sys/net/ipv4/{path}", "w") as file:
        file.write(value)
subprocess.run(["ip", "link", "set", "slow0", "up"], check=True)
for peer in peers:
    subprocess.run(["ip", "route", "add", f"{peer}/32", "dev", "slow0", "table", "100"], check=True)
    subprocess.run(["ip", "rule", "add", "iif", "lo", "to", peer, "lookup", "100", "priority", "50"], check=True)
print("slow", flush=True)
waiting = queue.Queue()

def forward():
    while True:
        due, packet = waiting.get()
        time.sleep(max(0.0, due - time.monotonic()))
        os.write(device, packet)

threading.Thread(target=forward, daemon=True).start()
while True:
    packet = os.read(device, 65536)
    waiting.put((time.monotonic() + seconds, packet))
"""


def alone() -> None:
    """Puts this process into a network namespace of its own (CLONE_NEWNET): what it starts is there too."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "no network namespace of its own")


def is_possible() -> bool:
    """Whether there can be namespaces here."""
    command = ["unshare", "--net", "ip", "link", "add", "name", "probe", "type", "bridge"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


def end_with_parent() -> None:
    """For a child: it does not outlive this process (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def do(*command: object) -> None:
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {run.stderr.strip()}")


@dataclass
class Machine:
    """One machine: what is started with `prefix` runs on it."""

    name: str
    address: str
    prefix: list[str] = field(default_factory=list)
    holder: subprocess.Popen[bytes] | None = None
    delay: subprocess.Popen[str] | None = None


class Network:
    """The bridge, and its machines by name."""

    has_links = True  # a whole link can be down

    def __init__(self) -> None:
        self.machines = {"targets": Machine("targets", BRIDGE)}
        do("ip", "link", "set", "lo", "up")
        do("ip", "link", "add", "bridge0", "type", "bridge")
        do("ip", "addr", "add", f"{BRIDGE}/24", "dev", "bridge0")
        do("ip", "link", "set", "bridge0", "up")

    async def machine(self, name: str) -> Machine:
        number = len(self.machines) + 1
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], preexec_fn=end_with_parent)
        machine = Machine(name, f"10.77.0.{number}", ["nsenter", "-t", str(holder.pid), "-n"], holder)
        while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            pass
        do("ip", "link", "add", f"m{number}", "type", "veth", "peer", "name", "eth0", "netns", holder.pid)
        do("ip", "link", "set", f"m{number}", "master", "bridge0", "up")
        do(*machine.prefix, "ip", "addr", "add", f"{machine.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            do(*machine.prefix, "ip", "link", "set", device, "up")
        self.machines[name] = machine
        return machine

    def port(self, _machine: Machine, usual: int) -> int:
        """A port that it can listen on."""
        return usual

    async def way(self, _client: Machine, server: Machine, port: int) -> tuple[str, int]:
        """The address by which a machine reaches another one's port."""
        return server.address, port

    def cut(self, sender: Machine, receiver: Machine) -> None:
        """From now on no packet of `sender` reaches `receiver`."""
        do(
            *sender.prefix,
            "ip",
            "neigh",
            "replace",
            receiver.address,
            "lladdr",
            NOBODY,
            "dev",
            self._device(sender),
            "nud",
            "permanent",
        )

    def restore(self, sender: Machine, receiver: Machine) -> None:
        do(*sender.prefix, "ip", "neigh", "del", receiver.address, "dev", self._device(sender))

    def isolate(self, machine: Machine) -> None:
        do(*machine.prefix, "ip", "link", "set", "eth0", "down")

    def join(self, machine: Machine) -> None:
        do(*machine.prefix, "ip", "link", "set", "eth0", "up")

    def slow(self, machine: Machine, peers: list[Machine], seconds: float) -> None:
        """What it sends to `peers` takes that long from now on."""
        addresses = [peer.address for peer in peers]
        machine.delay = subprocess.Popen(
            [*machine.prefix, sys.executable, "-c", DELAY, str(seconds), *addresses],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent,
        )
        if machine.delay.stdout is None or machine.delay.stdout.readline() != "slow\n":
            raise RuntimeError(f"{machine.name}: its packets cannot be delayed")

    def fast(self, machine: Machine) -> None:
        """Ends `slow`. What is on its way is lost, and sent again."""
        if machine.delay is not None:
            machine.delay.kill()
            machine.delay.wait()
            machine.delay = None
            while (
                subprocess.run(
                    [*machine.prefix, "ip", "rule", "del", "priority", "50"], capture_output=True, check=False
                ).returncode
                == 0
            ):
                pass

    def end(self) -> None:
        for machine in self.machines.values():
            for child in (machine.delay, machine.holder):
                if child is not None:
                    child.kill()
                    child.wait()

    def _device(self, machine: Machine) -> str:
        return "eth0" if machine.holder else "bridge0"


def has_tunnels() -> bool:
    return Path("/dev/net/tun").exists()
