"""Three replicas behind HAProxy on a PostgreSQL primary and its synchronous standby, each on a machine of its own."""

import asyncio
import json
import os
import pwd
import random
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import load
import network
import postgres
import proxies
from endpoints import Bot, Endpoint, Flaky, Recorded
from history import History
from ledger import Ledger
from network import Machine
from pushes import Pushes
from replicas import Balancer, Replica
from stored import Stored
from wechat import clear_text

PASSWORD = "password-of-the-cluster-tests"
HBA = ("hostssl all wxrelay all scram-sha-256", "host all postgres all trust", "host replication postgres all trust")
# A standby that hangs is noticed soon, and one that is back soon too.
SETTINGS = (
    "ssl = on",
    "ssl_cert_file = '../server.crt'",
    "ssl_key_file = '../server.key'",
    "wal_sender_timeout = 3s",
    "wal_receiver_timeout = 3s",
    "wal_receiver_status_interval = 1s",
)
REPLICAS = ("r1", "r2", "r3")
USERS = 120
Row = tuple[str, ...]  # event, target, attempts
WINDOW = 14  # seconds of the reply window, where there is one

# The controls: what breaks a promise, and no setting of the relay or the role does. Each commit of pushes is `local`; a push
# is known by nothing, and what waits for an earlier push of its user is due at once.
TRIGGER = """
CREATE FUNCTION wxrelay.{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
CREATE TRIGGER {name} BEFORE INSERT ON wxrelay.{table} FOR EACH {each} EXECUTE FUNCTION wxrelay.{name}();
"""
LOCAL = [
    TRIGGER.format(
        name="commit_locally",
        table="known",
        each="STATEMENT",
        body="PERFORM set_config('synchronous_commit', 'local', true); RETURN NULL;",
    )
]
BROKEN = [
    TRIGGER.format(
        name="forget_key",
        table="known",
        each="ROW",
        body="NEW.content_key = convert_to(random()::text, 'UTF8'); RETURN NEW;",
    ),
    TRIGGER.format(
        name="forget_order",
        table="delivery",
        each="ROW WHEN (NEW.due = 9223372036854775807)",
        body="NEW.due = 0; RETURN NEW;",
    ),
]
CONTROLS = {"local": LOCAL, "async": [], "broken": BROKEN}
FREE = """
SELECT d.event, t.name, d.attempts FROM wxrelay.delivery d JOIN wxrelay.target t ON t.no = d.target
 WHERE d.state = 0 AND d.holder IS NULL AND d.due <= extract(epoch FROM clock_timestamp()) * 1000
"""
STUCK = """
SELECT d.event, t.name, d.holder, r.name, d.due = 9223372036854775807,
       EXISTS (SELECT FROM wxrelay.delivery p WHERE p.target = d.target AND p.usr = d.usr AND p.state = 0 AND p.turn < d.turn), d.attempts
  FROM wxrelay.delivery d JOIN wxrelay.target t ON t.no = d.target LEFT JOIN wxrelay.replica r ON r.incarnation = d.holder
 WHERE d.state = 0 ORDER BY d.event LIMIT 200
"""


def certify(folder: Path, addresses: list[str]) -> Path:
    """A certificate of the servers, for all addresses by which they are reached; the path of its authority, which it is."""
    names = ",".join(f"IP:{address}" for address in addresses)
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=servers",
        "-addext",
        f"subjectAltName={names}",
        "-keyout",
        str(folder / "server.key"),
        "-out",
        str(folder / "server.crt"),
    ]
    if shutil.which("faketime"):
        command = ["faketime", "-f", "-1d", *command]  # a replica whose clock is behind must find it valid
    subprocess.run(command, check=True, capture_output=True)
    return folder / "server.crt"


class Database(postgres.Server):
    """A server on its machine, with TLS."""

    hba = HBA

    def __init__(self, machine: Machine, port: int, certificates: Path) -> None:
        super().__init__(machine.name, SETTINGS, at=(machine.address, port, machine.prefix))
        self.machine = machine
        for name in ("server.crt", "server.key"):
            path = self.path(name)
            path.write_bytes((certificates / name).read_bytes())
            path.chmod(0o600)
            if os.geteuid() == 0:
                user = pwd.getpwuid(self.path(".").stat().st_uid)
                os.chown(path, user.pw_uid, user.pw_gid)


class Cluster:
    """All of it. `start` returns when pushes are answered."""

    def __init__(self, arguments: Any, folder: Path, history: History) -> None:
        rng = random.Random(arguments.seed)
        push_rng, *target_rngs, self.rng = (random.Random(rng.random()) for _ in range(6))
        self.arguments, self.folder, self.history = arguments, folder, history
        self.pushes = Pushes(history, push_rng, USERS, arguments.rate)
        self.net: Any = network.Network() if arguments.namespaces else proxies.Network()
        self.addresses: dict[str, str] = {}
        kinds = {"login": Endpoint, "crm": Flaky, "ordered": Flaky, "bot": Bot}
        self.endpoints = [
            kind(name, history, self.pushes.second_of, rng, self.addresses, sealed=name == "login")
            for (name, kind), rng in zip(kinds.items(), target_rngs)
        ]
        for endpoint in self.endpoints:
            if isinstance(endpoint, Bot) and arguments.reply_window:
                endpoint.latest = WINDOW - 2.0
        self.databases: list[Database] = []
        self.replicas: list[Replica] = []
        self.balancer: Balancer | None = None

    async def start(self) -> None:
        machines = {name: await self.net.machine(name) for name in ("a", "b", *REPLICAS, "front")}
        self.addresses |= {machines[name].address: name for name in REPLICAS}
        authority = certify(self.folder, [machine.address for machine in self.net.machines.values()])
        await asyncio.to_thread(self._make_databases, machines)
        a, b = self.databases
        self.ways = {
            (client.name, server.name): await self.net.way(client.machine, server.machine, server.port)
            for client, server in ((a, b), (b, a))
        }
        await asyncio.to_thread(self._pair)
        await self._make_replicas(machines, authority)
        await asyncio.gather(*(replica.live() for replica in self.replicas))
        for sql in CONTROLS.get(self.arguments.control, []):
            self.primary.sql(sql)
        await self._make_balancer(machines["front"])

    def _make_databases(self, machines: dict[str, Machine]) -> None:
        self.databases = [Database(machines[name], self.net.port(machines[name], 5432), self.folder) for name in "ab"]
        self.primary, self.standby = self.databases
        self.primary.create()
        self.primary.sql(f"ALTER ROLE wxrelay PASSWORD '{PASSWORD}'", "postgres")

    def _pair(self) -> None:
        """The standby copies the primary, whose commits wait for it from now on."""
        self.standby.follow(self.primary, self.ways[self.standby.name, self.primary.name])
        if self.arguments.control != "async":
            self.primary.set("synchronous_standby_names", self.standby.name)
            load.wait_for(self.primary.has_standby, "a synchronous standby")

    def fail_over(self, is_strict: bool) -> None:
        """The primary is dead: the standby takes its place, and gets the old one as its standby. Strict: it commits nothing alone."""
        old, new = self.primary, self.standby
        if is_strict and self.arguments.control != "async":
            new.must(f"set synchronous_standby_names = '{old.name}'")
            new.sql("SELECT pg_reload_conf()", "postgres")
        new.promote()
        self.primary, self.standby = new, old
        self._pair()

    async def _make_replicas(self, machines: dict[str, Machine], authority: Path) -> None:
        targets = machines["targets"] if "targets" in machines else self.net.machines["targets"]
        for endpoint in self.endpoints:
            await endpoint.start(targets.address, Recorded)
        for name in REPLICAS:
            machine = machines[name]
            ports = self.net.port(machine, 8080), self.net.port(machine, 9180)
            replica = Replica(machine, self.folder, self.arguments.binary, ports, self.history)
            hosts = [await self.net.way(machine, server.machine, server.port) for server in self.databases]
            url = f"postgres://wxrelay:{PASSWORD}@{','.join(f'{host}:{port}' for host, port in hosts)}/wxrelay"
            ways = {endpoint.name: await self.net.way(machine, targets, endpoint.port) for endpoint in self.endpoints}
            window = WINDOW if self.arguments.reply_window else 0
            replica.configure(url, authority, ways, window, self.arguments.spool)
            self.replicas.append(replica)

    async def _make_balancer(self, machine: Machine) -> None:
        self.balancer = Balancer(machine, self.folder, self.net.port(machine, 80))
        ways = [
            (
                replica.name,
                await self.net.way(machine, replica.machine, replica.push),
                await self.net.way(machine, replica.machine, replica.admin),
            )
            for replica in self.replicas
        ]
        self.balancer.start(ways)
        await self.balancer.listening()
        self.pushes.start(await self.net.way(self.net.machines["targets"], machine, self.balancer.port))

    def pending(self) -> int:
        spooled = sum(len(Ledger(replica.spool).numbers) for replica in self.replicas)
        return spooled + int(self.primary.sql(load.PENDING))

    def free(self) -> set[Row]:
        """The deliveries that any replica could lease now."""
        return {tuple(line.split("|")) for line in self.primary.sql(FREE).splitlines()}

    def note_end(self, waits: Iterable[Row] = ()) -> None:
        """The store's lists, into the history, and what was free and due for too long."""
        found = Stored(self.primary)
        replies = dict(
            line.split("|")
            for line in self.primary.sql(
                "SELECT id, translate(encode(reply, 'base64'), chr(10), '') FROM wxrelay.event"
            ).splitlines()
        )
        for event, number in found.numbers.items():
            second = self.pushes.second_of(number)
            is_sound = second is not None and found.texts[number] == [clear_text(number, second)] * len(
                found.texts[number]
            )
            self.history.note(
                "event", number=number, event=event, sound=is_sound, reply=bool(replies[str(int(event[4:], 16))])
            )
        for (event, target), state in found.deliveries.items():
            self.history.note("delivery", number=found.numbers.get(event), event=event, target=target, state=state)
        self._note_waits(found)
        for event, target, attempts in waits:
            identity = f"evt_{int(event):016x}"
            facts = {"number": found.numbers.get(identity), "event": identity, "target": target, "attempts": attempts}
            self.history.note("wait", **facts, why="free and due, and nobody leased it")
        command = [str(self.arguments.binary), "audit", "-c", str(self.replicas[0].config), "--json"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        told = json.loads(run.stdout) if run.stdout.startswith("{") else {"error": run.stdout + run.stderr}
        self.history.note("audit", **{**told, "code": run.returncode})

    def _note_waits(self, found: Stored) -> None:
        for line in self.primary.sql(STUCK).splitlines():
            event, target, holder, name, is_held, has_earlier, attempts = line.split("|")
            identity = f"evt_{int(event):016x}"
            why = (
                f"held by {name or 'nobody'}, {holder}"
                if holder
                else "free"
                if is_held == "f"
                else "held for an earlier one"
                if has_earlier == "t"
                else "held for an earlier one that is not there"
            )
            self.history.note(
                "wait", number=found.numbers.get(identity), event=identity, target=target, attempts=attempts, why=why
            )

    async def end(self) -> None:
        if hasattr(self.pushes, "tasks"):
            await self.pushes.cancel()
        for replica in self.replicas:
            if replica.is_alive():
                await replica.relay.kill()
        if self.balancer:
            self.balancer.end()
        for endpoint in self.endpoints:
            if hasattr(endpoint, "server"):
                endpoint.end()
        for database in self.databases:
            database.end()
        self.net.end()
