"""Ports for programs that are told their port: no other program on the machine gets one in between.

A port that the kernel chose for a probe may be the local port of any connection a moment later, since it is from the
range for those. So these are from below that range, and this process locks each against other test runs until it ends.
"""
import random
import socket
from pathlib import Path

FIRST, LAST = 15000, 29999
locks = []  # open sockets, whose names lock a port each


def free_port():
    """A port of 127.0.0.1 that stays free until the caller, or a child of it, listens there."""
    connections_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if connections_from <= LAST:
        raise RuntimeError(f"connections get ports from {connections_from} on, but {FIRST} to {LAST} are for these tests")
    for port in random.sample(range(FIRST, LAST + 1), 200):
        if is_locked(port) and is_unused(port):
            return port
    raise RuntimeError(f"200 ports between {FIRST} and {LAST} are in use")


def is_locked(port):
    """Locks the port for this process, if no other process has locked it."""
    # An abstract name: it belongs to the network namespace, as ports do, needs no file, and ends with the process.
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0wxrelay-test-port-{port}")
    except OSError:
        lock.close()
        return False
    locks.append(lock)
    return True


def is_unused(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
