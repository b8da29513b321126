"""The links of a cluster where there can be no network namespaces: a TCP proxy for each pair that talks to each other.

Each machine is an address of the loopback network. A proxy binds its connections to the address of the client's machine, so
that a server knows who it is. Cut, a proxy passes nothing on and closes nothing (half-open), accepts nothing that it
answers, and drops its connections when it is restored; slow, it keeps each piece of data for a while.
"""

import asyncio
import contextlib
import os
import socket

from network import Machine

PIECE = 65536


class Link:
    """What passes from one machine to another: the state of a direction."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.delay = 0.0


class Proxy:
    """A port of a server, as one client sees it."""

    def __init__(self, client: Machine, server: tuple[str, int], out: Link, back: Link) -> None:
        self.client, self.server, self.out, self.back = client, server, out, back
        self.open: set[asyncio.StreamWriter] = set()

    async def start(self) -> tuple[str, int]:
        self.listener = await asyncio.start_server(self._serve, self.client.address, 0, backlog=256)
        host, port = self.listener.sockets[0].getsockname()[:2]
        return host, port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self.out.is_open.wait()
            await self.back.is_open.wait()
            there, onward = await asyncio.open_connection(*self.server, local_addr=(self.client.address, 0))
            self.open.add(onward)
            passing = [
                asyncio.ensure_future(self._pass(reader, onward, self.out)),
                asyncio.ensure_future(self._pass(there, writer, self.back)),
            ]
            await asyncio.wait(passing)
            self._close(onward)
        self._close(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.ensure_future(self._send(waiting, writer, link))
        data = b"."
        while data and not sending.done():
            try:
                data = await reader.read(PIECE)
            except OSError:
                data = b""
            waiting.put_nowait((loop.time() + link.delay, data))
        await sending

    async def _send(
        self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, link: Link
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await link.is_open.wait()
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

    def drop(self) -> None:
        for writer in list(self.open):
            self._close(writer)

    def _close(self, writer: asyncio.StreamWriter) -> None:
        self.open.discard(writer)
        writer.transport.abort()


class Network:
    """The machines by name, and the proxies between them. As `network.Network`, without links that can be down."""

    has_links = False

    def __init__(self) -> None:
        pid = os.getpid()
        self.net = f"127.{(pid >> 8) & 255 | 1}.{pid & 255}"
        self.machines = {"targets": Machine("targets", f"{self.net}.1")}
        self.links: dict[tuple[str, str], Link] = {}
        self.proxies: list[Proxy] = []

    async def machine(self, name: str) -> Machine:
        machine = Machine(name, f"{self.net}.{len(self.machines) + 1}")
        self.machines[name] = machine
        return machine

    def port(self, machine: Machine, _usual: int) -> int:
        """A port that it can listen on: the address is nobody else's."""
        with socket.create_server((machine.address, 0)) as probe:
            return int(probe.getsockname()[1])

    async def way(self, client: Machine, server: Machine, port: int) -> tuple[str, int]:
        """The address by which a machine reaches another one's port."""
        proxy = Proxy(client, (server.address, port), self.link(client, server), self.link(server, client))
        self.proxies.append(proxy)
        return await proxy.start()

    def link(self, sender: Machine, receiver: Machine) -> Link:
        return self.links.setdefault((sender.name, receiver.name), Link())

    def cut(self, sender: Machine, receiver: Machine) -> None:
        """From now on nothing of `sender` reaches `receiver`."""
        self.link(sender, receiver).is_open.clear()

    def restore(self, sender: Machine, receiver: Machine) -> None:
        self.link(sender, receiver).is_open.set()
        pair = {sender.name, receiver.name}
        for proxy in self.proxies:
            if {proxy.client.address, proxy.server[0]} == {self.machines[name].address for name in pair}:
                proxy.drop()

    def slow(self, machine: Machine, peers: list[Machine], seconds: float) -> None:
        """What it sends to `peers` takes that long from now on."""
        for peer in peers:
            self.link(machine, peer).delay = seconds

    def fast(self, machine: Machine) -> None:
        """Ends `slow`."""
        for (sender, _), link in self.links.items():
            if sender == machine.name:
                link.delay = 0.0

    def end(self) -> None:
        for proxy in self.proxies:
            proxy.listener.close()
            proxy.drop()
