"""deploy/compose/three.yaml without Docker: `three.py BINARY`.

The services run as the file says, from the mounted files and with its environment: the relays, PostgreSQL on two servers,
HAProxy, and then nginx with its own file. Only the addresses are others: 10.77.0.x becomes a network of 127.0.0.0/8 that
nobody else uses, so that ports stay as they are. Under load a relay is killed and frozen, all are restarted one after the
other, and the primary is lost: no push may go unanswered beyond what docs/machines.md says, and none may be lost.
"""
import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml
from scene import (ROOT, Pushes, Service, Target, free_network, is_root, names_in_haproxy, schema_errors, wait_until)

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "cluster"))
import postgres  # noqa: E402
from checks import Checks, expect, expect_that  # noqa: E402

RELAYS = ("relay-1", "relay-2", "relay-3")
TIMEOUT = 2  # seconds, of the target: what a killed relay held goes on 5 s + this + 2 s after its last sign of life
TAKEOVER = 5 + TIMEOUT + 2
RATE = 60  # pushes a second


class Three:
    def __init__(self, binary, folder):
        self.folder, self.deploy = folder, folder / "deploy"
        self.binary = folder / "wxrelay"
        shutil.copy(binary, self.binary)
        self.net = free_network()
        self.services = {}
        self.target = Target(f"{self.net}.1")

    def checks(self):
        yield "three.yaml is as Compose's schema says, and mounts only files that exist", self.file
        yield "every service is contained: no capabilities, a read-only root, no secrets in its environment", self.contained
        yield "HAProxy and nginx name the addresses of the relays, and no others", self.addresses
        yield "`init` and setup.sh write what `check` accepts with the environment of each relay", self.configured
        yield "all secrets belong to the user of their service, and to nobody else", self.secrets
        yield "the two servers start, and the standby is synchronous", self.servers
        yield "the relays get ready, by the image's health check", self.relays
        yield "each relay exports PostgreSQL's metrics that dashboard and alerts name, with the same values", self.metrics
        yield "HAProxy accepts its files, and a push passes with the client's address", self.haproxy
        yield "kill -9 of a relay: every push is answered at its first try, and HAProxy uses it again", self.kill
        yield "a frozen relay: what it has accepted is WeChat's next try, all else is answered at once", self.freeze
        yield "a rolling restart: every push is answered at its first try", self.rolling
        yield "kill -9 of the primary: every push is answered once the standby is promoted", self.failover
        yield "the former primary follows the new one by itself, and commits wait for both again", self.rejoined
        yield "kill -9 of the standby: pushes go to the spools until the operator lets the primary work alone", self.alone
        yield "a primary that was only cut off ends when it sees its standby promoted, and follows", self.cut_off
        yield "while PostgreSQL is away every push is answered from a spool, and delivered when it is back", self.away
        yield "nginx accepts its file, and kill -9 of a relay leaves no push unanswered", self.nginx
        yield "every push that was answered is one event, and reached the target; the audit is clean", self.audit

    # What the file says

    def file(self):
        for part in ("compose", "haproxy", "nginx", "prometheus", "grafana", "docker"):
            shutil.copytree(ROOT / "deploy" / part, self.deploy / part, ignore=shutil.ignore_patterns("etc"))
        self.compose = self.deploy / "compose"
        self.plan = yaml.safe_load((self.compose / "three.yaml").read_text())
        expect(schema_errors(self.plan), [], "errors by the schema")
        mounts = [mount for service in self.plan["services"].values() for mount in service.get("volumes", [])]
        sources = {mount.split(":")[0] for mount in mounts if mount.startswith(".")}
        # setup.sh makes `etc`.
        missing = [source for source in sources if not source.startswith("./etc") and not (self.compose / source).exists()]
        expect(missing, [], "mounts of missing files")
        writable = [mount for mount in mounts if mount.startswith(".") and not mount.endswith(":ro")]
        expect(writable, [], "files of the host that a service can write")
        named = {mount.split(":")[0] for mount in mounts if not mount.startswith(".")}
        expect(named, set(self.plan["volumes"]), "volumes")
        return f"{len(self.plan['services'])} services"

    def contained(self):
        for name, service in self.plan["services"].items():
            expect(service["restart"], "always", f"restart of {name}")
            expect_that(":" in service["image"] or service["image"] == "wxrelay", f"the image of {name} has a version")
            if "profiles" in service:
                continue
            expect((service["read_only"], service["cap_drop"]), (True, ["ALL"]), f"root and capabilities of {name}")
            expect(service["security_opt"], ["no-new-privileges:true"], f"privileges of {name}")
            secret = re.compile(r"password|token|secret|key", re.I)
            shown = [key for key, value in service.get("environment", {}).items() if secret.search(key) and "file" not in str(value)]
            expect(shown, [], f"secrets in the environment of {name}")
        expect({self.plan["services"][name]["stop_grace_period"] for name in RELAYS}, {"30s"}, "time to stop")

    def addresses(self):
        at = {name: service["networks"]["wxrelay"]["ipv4_address"] for name, service in self.plan["services"].items()
              if "profiles" not in service}
        relays = {name: at[name] for name in RELAYS}
        haproxy = names_in_haproxy((self.deploy / "haproxy/haproxy-replicas.cfg").read_text())
        expect(haproxy, {"wxrelay": relays, "wxrelay-any": relays}, "servers in HAProxy's file")
        nginx = (self.deploy / "nginx/wxrelay-replicas.conf").read_text()
        expect(sorted(re.findall(r"server (\S+):8080", nginx)), sorted([*relays.values()] * 2), "servers in nginx's file")
        setup = (self.compose / "setup.sh").read_text()
        for text in (f'trusted_proxies = ["{at["haproxy"]}/32"]', f'@{at["pg-a"]}:5432,{at["pg-b"]}:5432/', f'IP:{at["pg-b"]}'):
            expect_that(text in setup, f"setup.sh has no {text}")
        expect_that(self.plan["services"]["pg-a"]["environment"]["PEER"] == at["pg-b"], "the peer of pg-a is pg-b")
        expect_that(self.plan["services"]["pg-b"]["environment"]["PEER"] == at["pg-a"], "the peer of pg-b is pg-a")
        scraped = re.findall(r'"([\w-]+):9180"', (self.compose / "prometheus.yml").read_text())
        expect(tuple(scraped), RELAYS, "what Prometheus scrapes")
        published = {port.split(":")[1] for port in self.plan["services"]["haproxy"]["ports"]}
        bound = set(re.findall(r"bind :(\d+)", (self.deploy / "haproxy/haproxy-replicas.cfg").read_text()))
        expect(published, bound, "published ports")

    # Set up

    def configured(self):
        for path in [*self.compose.rglob("*"), *self.deploy.glob("haproxy/*"), *self.deploy.glob("nginx/*")]:
            if path.is_file():
                path.write_text(path.read_text().replace("10.77.0", self.net))
        self.plan = yaml.safe_load((self.compose / "three.yaml").read_text())
        etc = self.compose / "etc/relay"
        etc.mkdir(parents=True)
        if is_root():
            os.chown(etc, 65532, 65532)
        url = f"http://{self.net}.1:{self.target.port}/"
        service = Service("init", [self.binary, "init", "--dir", etc, "--mode", "plaintext", "--app-id", "wx0123456789abcdef",
                                   "--handler", url, "--data", "/var/lib/wxrelay"], user=65532)
        expect(service.run(), (0, ""), "exit code of init, and errors")
        done = Service("setup", [self.compose / "setup.sh"]).run()
        expect(done[0], 0, f"exit code of setup.sh: {done[1]}")
        before = {path: path.read_bytes() for path in (self.compose / "etc").rglob("*") if path.is_file()}
        expect(Service("setup", [self.compose / "setup.sh"]).run()[0], 0, "exit code of setup.sh, run again")
        changed = [path.name for path, text in before.items() if path.read_bytes() != text]
        expect(changed, [], "files that the second run has changed")
        self.config = etc / "config.toml"
        text = self.config.read_text()
        expect_that('type = "postgres"' in text and "path = \"/var/lib" not in text, "the store is PostgreSQL")
        for name in RELAYS:
            service = self.relay(name)
            code, told = service.run("check")
            expect((code, [line for line in told.splitlines() if "secret" in line]), (0, []), f"exit code of check for {name}: {told}")
            self.services[name] = service
        # The test's own: who may push, so that the address that the proxy passes on is seen to be used.
        self.config.write_text(text.replace("[accounts.main]\n", f'[accounts.main]\nallow_from = {{ networks = ["{self.net}.200/32"], action = "deny" }}\n'))
        return f"{len(before)} files in etc"

    def secrets(self):
        owners = {"relay": 65532, "postgres": 999, "haproxy": 99, "prometheus": 65534}
        for folder, owner in owners.items():
            for path in (self.compose / "etc" / folder).iterdir():
                if is_root():
                    expect(path.stat().st_uid, owner, f"owner of {path}")
                expect(path.stat().st_mode & 0o077, 0, f"what others may do with {path}")
        users = {self.plan["services"][name]["user"].split(":")[0] for name in ("pg-a", "pg-b")}
        expect(users, {"999"}, "user of PostgreSQL")
        expect([path.name for path in (self.compose / "etc").iterdir() if path.is_file()], ["ca.key"], "files that no service sees")

    def relay(self, name):
        plan = self.plan["services"][name]
        address = plan["networks"]["wxrelay"]["ipv4_address"]
        environment = {key: str(value).replace("/etc/wxrelay", str(self.compose / "etc/relay")) for key, value in plan["environment"].items()}
        # A container has addresses of its own; here they must be named.
        environment |= {"WXRELAY__SERVER__LISTEN": f'["{address}:8080"]', "WXRELAY__QUEUE__REPLICA": plan["hostname"],
                        "WXRELAY__ADMIN__LISTEN": environment["WXRELAY__ADMIN__LISTEN"].replace("0.0.0.0", address),
                        "WXRELAY__QUEUE__SPOOL": str(self.spool(name)), "WXRELAY_CONFIG": str(self.compose / "etc/relay/config.toml"), "WXRELAY__TARGETS__HANDLER__TIMEOUT": f"{TIMEOUT}s"}
        return Service(name, [self.binary], environment, user=65532, log=self.folder / f"{name}.log")

    def spool(self, name):
        """The folder of its volume."""
        folder = self.folder / f"{name}.spool"
        folder.mkdir(mode=0o700, exist_ok=True)
        if is_root():
            os.chown(folder, 65532, 65532)
        return folder / "spool"

    def server(self, name):
        plan = self.plan["services"][name]
        home = self.memory / name
        mounted = {"/etc/postgres/secrets": self.compose / "etc/postgres", "/etc/postgres": self.compose}
        command = [str(word) for word in plan["entrypoint"]]
        for place, source in mounted.items():
            command = [word.replace(place, str(source)) for word in command]
        environment = {key: str(value).replace("/var/lib/postgresql/data", str(home)) for key, value in plan["environment"].items()}
        environment |= {"SECRETS": str(mounted["/etc/postgres/secrets"]), "HBA": str(self.compose / "pg_hba.conf"),
                        "SOCKETS": str(home), "ADDRESS": plan["networks"]["wxrelay"]["ipv4_address"],
                        "PATH": f"{postgres.programs()}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
        return Service(name, command, environment, user="postgres", log=self.folder / f"{name}.log")

    def servers(self):
        base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else self.folder
        self.memory = Path(tempfile.mkdtemp(prefix="wxrelay-three-", dir=base))
        os.chmod(self.memory, 0o755)
        for name in ("pg-a", "pg-b"):
            self.services[name] = service = self.server(name)
            (self.memory / name).mkdir()
            if is_root():
                shutil.chown(self.memory / name, service.user)
        if is_root():
            # The image's uid 999 is another user here.
            for path in [self.compose / "etc/postgres", *(self.compose / "etc/postgres").iterdir()]:
                shutil.chown(path, self.services["pg-a"].user)
        # The standby first: it waits.
        self.services["pg-b"].start("start")
        self.services["pg-a"].start("start")
        wait_until(lambda: self.sql("pg-a", "SELECT sync_state FROM pg_stat_replication") == "sync", "a synchronous standby", 60)
        expect(self.sql("pg-a", "SHOW synchronous_standby_names"), '"pg-b"', "synchronous_standby_names")

    def sql(self, name, text):
        service = self.services[name]
        command = ["psql", "-X", "-A", "-t", "-q", "-h", service.environment["SOCKETS"], "-U", "postgres", "-d", "postgres", "-c", text]
        return Service("psql", command, service.environment, user="postgres").output()

    def relays(self):
        for name in RELAYS:
            self.services[name].start("serve")
        for name in RELAYS:
            wait_until(self.services[name].is_ready, f"{name} is ready", 30)
        return f"{sum(self.services[name].restarts for name in RELAYS)} restarts"

    def metrics(self):
        named = set()
        for path in ("deploy/grafana/dashboard.json", "deploy/prometheus/alerts.yml"):
            named |= set(re.findall(r"\bwxrelay_store_(?:up|standby|dead_tuples|xmin_age_seconds)\b", (ROOT / path).read_text()))
        expect(len(named), 4, "metrics of PostgreSQL that are named")

        def same():
            exported = [self.scrape(name) for name in RELAYS]
            missing = [name for name in named if any(f"\n{name}" not in text for text in exported)]
            stored = [sorted(re.findall(r"^wxrelay_(?:pending|dead|unaccounted_deliveries|store_up|store_standby)\b.*", text, re.M)) for text in exported]
            return not missing and len(stored[0]) == 5 and stored[0] == stored[1] == stored[2]
        # Some are read every 10 s.
        wait_until(same, "all metrics of PostgreSQL, equal", 30)

    def scrape(self, name):
        environment = self.services[name].environment
        url = f"http://{environment['WXRELAY__ADMIN__LISTEN']}/metrics"
        token = (self.compose / "etc/prometheus/admin-token").read_text().strip()
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.read().decode()

    # Behind HAProxy

    def haproxy(self):
        plan = self.plan["services"]["haproxy"]
        proxy = self.deploy / "haproxy/haproxy-replicas.cfg"
        text = proxy.read_text()
        self.front = (f"{self.net}.10", 80 if is_root() else 8000)
        # A container connects from its own address.
        replaced = [("    mode http\n", f"    mode http\n    source {self.net}.10\n"), ("bind :80\n", f"bind {self.net}.10:{self.front[1]}\n"),
                    ("bind :443 ", f"bind {self.net}.10:{443 if is_root() else 8443} "), ("/etc/haproxy/certs", str(self.compose / "etc/haproxy"))]
        for old, new in replaced:
            expect(text.count(old), 1, f"lines {old!r} in HAProxy's file")
            text = text.replace(old, new)
        proxy.write_text(text)
        mounted = dict(mount.split(":")[1::-1] for mount in plan["volumes"])
        path = f"{os.environ['PATH']}:/usr/sbin"
        command = [str((self.compose / mounted[word]).resolve()) if word in mounted else word for word in plan["command"]]
        checked = Service("haproxy", [*command, "-c"], {"PATH": path})
        code, told = checked.run()
        expect((code, [line for line in told.splitlines() if "WARN" in line or "ALERT" in line]), (0, []), f"haproxy -c: {told}")
        tcp = self.folder / "tcp.cfg"
        text = re.sub(r"^(\s+)# (balance|retries|option|server) ", r"\1\2 ", (self.deploy / "haproxy/haproxy-tcp.cfg").read_text(), flags=re.M)
        tcp.write_text(text.replace("    server relay 127.0.0.1", "    # server relay 127.0.0.1"))
        code, told = Service("haproxy", ["haproxy", "-c", "-f", self.compose / "haproxy-global.cfg", "-f", tcp], {"PATH": path}).run()
        expect((code, text.count("send-proxy-v2 check port 9180")), (0, 2), f"haproxy -c with the replicas of haproxy-tcp.cfg: {told}")
        self.services["haproxy"] = Service("haproxy", command, {"PATH": path}, log=self.folder / "haproxy.log")
        self.services["haproxy"].start()
        wait_until(lambda: self.log("haproxy").count("is UP") == 0 and self.one() == 200, "HAProxy passes pushes on", 15)
        expect(self.one(source=f"{self.net}.201"), 403, "the answer to a push from an address outside allow_from")

    def one(self, source=None):
        """The status of one push."""
        with contextlib.suppress(OSError):
            return asyncio.run(Pushes(self, self.front).single(source))

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def under_load(self, meet, within=1):
        """Pushes at RATE until `meet` is done; each must be answered 200 at one of its first `within` tries."""
        async def go():
            pushes = Pushes(self, self.front)
            sending = asyncio.create_task(pushes.send(RATE))
            await asyncio.sleep(1)
            try:
                await asyncio.to_thread(meet)
                await asyncio.sleep(1)
            finally:
                pushes.finish()
                await sending
            return pushes
        pushes = asyncio.run(go())
        self.target.expected |= pushes.answered
        late = {number: tries for number, tries in pushes.tries.items() if len(tries) > within or tries[-1] != 200}
        expect(dict(list(late.items())[:5]), {}, f"pushes of {len(pushes.tries)} that needed more than {within} tries ({len(late)})")
        again = sum(len(tries) > 1 for tries in pushes.tries.values())
        return f"{len(pushes.tries)} pushes, {again} tried again, slowest answer {pushes.slowest:.2f} s"

    def kill(self):
        before = self.repeated()

        def meet():
            for name in ("relay-2", "relay-3"):
                # So that it has pushes when it is killed, which the proxy must repeat although it has sent them.
                self.services[name].freeze()
                time.sleep(0.5)
                self.services[name].kill()
                time.sleep(2)
                self.services[name].start("serve")
                wait_until(self.services[name].is_ready, f"{name} is ready again", 30)
                time.sleep(1.5)
        note = self.under_load(meet)
        repeated = self.repeated() - before
        expect_that(repeated > 0, "the proxy has sent pushes of the killed relay to another")
        return f"{note}, {repeated} repeated by the proxy"

    def repeated(self):
        """How many pushes the proxies have sent to a second relay."""
        with contextlib.suppress(FileNotFoundError):
            tries = re.findall(r", [\d.]+:8080 \d+, ?\d+", (self.folder / "wxrelay.log").read_text())
            return len(tries)
        return len(re.findall(r" \+\d+ \d+ \S+ \d+ ", self.log("haproxy")))

    def freeze(self):
        def meet():
            self.services["relay-1"].freeze()
            time.sleep(8)
            self.services["relay-1"].thaw()
            wait_until(self.services["relay-1"].is_ready, "it is ready again", 30)
        return self.under_load(meet, within=2)

    def rolling(self):
        def meet():
            for name in RELAYS:
                expect(self.services[name].stop(), 0, f"exit code of {name} after SIGTERM")
                self.services[name].start("serve")
                wait_until(self.services[name].is_ready, f"{name} is ready again", 30)
                time.sleep(1.5)
        return self.under_load(meet)

    # PostgreSQL

    def failover(self):
        def meet():
            self.services["pg-a"].kill_group()
            time.sleep(1)
            expect_that("promoted" in self.script("pg-b", "promote"), "the standby was promoted")
            wait_until(lambda: self.one_try() == 200, "a push is answered after the promotion", 10)
        return self.under_load(meet, within=3)

    def one_try(self):
        return asyncio.run(Pushes(self, self.front).single(None))

    def script(self, name, command):
        """As `docker compose exec NAME bash /etc/postgres/postgres.sh COMMAND`."""
        service = self.services[name]
        return Service(name, [*service.command, command], service.environment, user="postgres").output()

    def rejoined(self):
        self.follows("pg-a", "pg-b")
        expect_that((self.memory / "pg-a/pg.before").is_dir(), "what the former primary had is kept")
        expect(self.one(), 200, "a push")

    def follows(self, standby, primary):
        self.services[standby].start("start")
        wait_until(lambda: self.sql(primary, "SELECT state FROM pg_stat_replication") == "streaming", f"{standby} follows {primary}", 60)
        self.script(primary, "pair")
        wait_until(lambda: self.sql(primary, "SELECT sync_state FROM pg_stat_replication") == "sync", f"commits wait for {standby}", 10)

    def alone(self):
        self.services["pg-a"].kill_group()
        expect(self.one(), 200, "a push without the standby")
        self.script("pg-b", "alone")
        wait_until(lambda: all("\nwxrelay_spool_events 0\n" in self.scrape(name) for name in RELAYS), "the spools are stored", 30)
        self.follows("pg-a", "pg-b")

    def cut_off(self):
        def meet():
            # As when its network is gone: it knows nothing of the promotion, and works on when it is back.
            self.services["pg-b"].freeze_group()
            self.script("pg-a", "promote")
            wait_until(lambda: self.one_try() == 200, "a push is answered after the promotion", 10)
            self.services["pg-b"].thaw_group()
            wait_until(lambda: self.services["pg-b"].child.poll() is not None, "the former primary ends", 30)
        note = self.under_load(meet, within=3)
        self.follows("pg-b", "pg-a")
        return note

    def away(self):
        def meet():
            self.services["pg-a"].freeze_group()
            time.sleep(12)
            expect_that(all(self.services[name].is_ready() for name in RELAYS), "all relays are ready all the time")
            self.services["pg-a"].thaw_group()
        return self.under_load(meet)

    # nginx

    def nginx(self):
        text = (self.deploy / "nginx/wxrelay-replicas.conf").read_text()
        self.front = (f"{self.net}.20", 80 if is_root() else 8000)
        cert = self.folder / "nginx.pem"
        shutil.copy(self.compose / "etc/haproxy/relay.example.com.pem", cert)
        tls = 443 if is_root() else 8443
        replaced = [("listen 80;", f"listen {self.net}.20:{self.front[1]};"), ("listen [::]:80;", ""), ("listen 443 ssl;", f"listen {self.net}.20:{tls} ssl;"),
                    ("listen [::]:443 ssl;", ""), ("/etc/letsencrypt/live/relay.example.com/fullchain.pem", str(cert)),
                    ("/etc/letsencrypt/live/relay.example.com/privkey.pem", str(cert)), ("/var/log/nginx", str(self.folder)),
                    ("    proxy_http_version 1.1;\n", f"    proxy_http_version 1.1;\n    proxy_bind {self.net}.10;\n")]
        for old, new in replaced:
            expect_that(old in text, f"nginx's file has no {old!r}")
            text = text.replace(old, new)
        places = "".join(f"{name}_temp_path {self.folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        file = self.folder / "nginx.conf"
        file.write_text(f"daemon off;\nmaster_process off;\npid {self.folder}/nginx.pid;\nevents {{}}\nhttp {{\n{places}{text}}}\n")
        path = f"{os.environ['PATH']}:/usr/sbin"
        command = ["nginx", "-e", "stderr", "-p", self.folder, "-c", file]
        code, told = Service("nginx", [*command, "-t"], {"PATH": path}).run()
        expect(code, 0, f"exit code of nginx -t: {told}")
        self.services["nginx"] = Service("nginx", command, {"PATH": path}, log=self.folder / "nginx.log")
        self.services["nginx"].start()
        wait_until(lambda: self.one() == 200, "nginx passes pushes on", 10)
        return self.kill()

    def audit(self):
        time.sleep(TAKEOVER)
        wait_until(lambda: not self.target.missing(), "every event reaches the target", 40, lambda: f"{len(self.target.missing())} missing")
        expect(self.target.ids_apart(), {}, "pushes that became more than one event")
        code, told = self.services["relay-1"].run("audit")
        expect(code, 0, f"exit code of audit: {told}")
        return f"{len(self.target.expected)} events"

    def end(self):
        for service in self.services.values():
            service.end()
        self.target.end()
        if hasattr(self, "memory"):
            shutil.rmtree(self.memory)


def main():
    lacking = [name for name in ("haproxy", "nginx", "openssl", "bash") if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    if postgres.programs() is None:
        lacking.append(f"PostgreSQL {postgres.OLDEST}")
    if lacking:
        print(f"skipped: {', '.join(lacking)} not installed", flush=True)
        return 1 if os.environ.get("CI") else 0
    with tempfile.TemporaryDirectory(prefix="wxrelay-three-") as folder:
        os.chmod(folder, 0o755)
        checks, three = Checks(), Three(Path(sys.argv[1]).resolve(), Path(folder))
        try:
            for name, check in three.checks():
                checks.run(name, check)
                if checks.failed:
                    break
        finally:
            three.end()
            if checks.failed and os.environ.get("KEEP"):
                shutil.copytree(folder, os.environ["KEEP"], dirs_exist_ok=True)
        return checks.close()


if __name__ == "__main__":
    sys.exit(main())
