"""Prometheus and Grafana: the shipped files in deploy/, evaluated by a real Prometheus.

A relay with pushes of every fate and one with TLS are scraped with the shipped prometheus.yml; then every query of the
dashboard must return data, and every alert's expression must be evaluated on metrics that are there. `promtool` lints
the metrics and plays the alerts. Both are of Debian's package `prometheus`.
"""
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

from rig import Failure, expect, expect_that, free_port
from stand import HERE, Stand, Tap
from wechat import Account, message, push

DEPLOY = HERE.parent.parent / "deploy"
RULES = DEPLOY / "prometheus"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
TOKEN = "the-admin-token-of-the-test-0123456789"
PATIENCE = 30.0  # seconds, for scrapes a second apart
# What Grafana puts in place of its variables.
VARIABLES = {"$account": ".*", "$target": ".*", "$__rate_interval": "5m", "$__range": "1m", "$__interval": "1s"}
# Missing with the embedded engine, which both relays here have; tests/deploy/three.py finds them with PostgreSQL.
OF_POSTGRESQL = {
    "wxrelay_store_up", "wxrelay_store_standby", "wxrelay_store_dead_tuples", "wxrelay_store_xmin_age_seconds",
    "wxrelay_replicas", "wxrelay_replicas_differ",
    "wxrelay_spooled_total", "wxrelay_spool_events",
}
ACCOUNT = 'path = "/wx"\napp_id = "{id}"\ntoken = "{token}"\nmode = "secure"\nencoding_aes_key = "{key}"\n'


class Monitoring:
    def __init__(self, binary):
        self.pushed, self.served = Stand(binary), Stand(binary)
        self.account = Account("shop", "secure", "/wx")

    def start(self):
        missing = [name for name in ("prometheus", "promtool", "openssl") if not shutil.which(name)]
        expect_that(not missing or not os.environ.get("CI"), f"CI must have {missing}")
        if missing:
            self.checks = lambda: []
            return f"SKIPPED: no {missing} here"
        self._pushed()
        self._served()
        self._prometheus()

    def checks(self):
        yield "promtool: the rules are valid and each alert fires when it should, and only then", self.rules
        yield "promtool: the names and helps of all metrics follow the conventions of Prometheus", self.linted
        yield "Prometheus scrapes both relays with the shipped configuration and the admin token", self.scraped
        for title, expressions in panels():
            yield f"dashboard: '{title}' shows data", lambda e=expressions: self.shows(e)
        yield "dashboard: the variables list the accounts and targets", self.variables
        yield "alerts: Prometheus evaluates each, and on existing metrics", self.alerts
        yield "dashboard: the layout is complete and no panels overlap", laid_out

    def rules(self):
        run("promtool", "check", "rules", RULES / "alerts.yml")
        run("promtool", "test", "rules", RULES / "alerts_test.yml", RULES / "alerts_days_test.yml")
        run("promtool", "check", "config", "--syntax-only", RULES / "prometheus.yml")
        run("promtool", "check", "config", "--syntax-only", DEPLOY / "docker" / "prometheus.yml")
        played = "".join((RULES / name).read_text() for name in ("alerts_test.yml", "alerts_days_test.yml"))
        rules = re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text())
        expect([rule for rule in rules if f'alertname="{rule}"' not in played], [], "alerts that no test makes fire")
        return f"{len(rules)} alerts"

    def linted(self):
        lint = subprocess.run(["promtool", "check", "metrics"], input=self._metrics(), capture_output=True, text=True, timeout=30)
        expect((lint.returncode, lint.stdout + lint.stderr), (0, ""), "exit code and complaints")

    def scraped(self):
        def both_up():
            up = self._query('up{job="wxrelay"} == 1')
            return len(up) == 2
        eventually("two targets are up", both_up)

    def shows(self, expressions):
        def shown():
            return all(any(sample["value"][1] != "NaN" for sample in self._query(expression)) for expression in expressions)
        eventually(f"data from each of {expressions}", shown)
        names = sorted(set(re.findall(r"\bwxrelay_\w+", " ".join(expressions))) - OF_POSTGRESQL)
        expect([name for name in names if not self._query(f"count({name})")], [], "metrics that are not there")

    def variables(self):
        found = {}
        for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
                found[variable["name"]] = self._get(f"label/{label}/values?" + urllib.parse.urlencode({"match[]": metric}))
        expect(found, {"account": ["shop", "tls"], "target": ["broken", "crm", "login", "other"]}, "values")

    def alerts(self):
        def evaluated():
            groups = self._get("rules?type=alert")["groups"]
            self.found = [rule for group in groups for rule in group["rules"]]
            return self.found and all(rule["health"] != "unknown" for rule in self.found)
        eventually("the rules are evaluated", evaluated)
        expect([rule["lastError"] for rule in self.found if rule["health"] != "ok"], [], "errors of rules")
        expect([rule["name"] for rule in self.found if not {"summary", "description", "runbook"} <= rule["annotations"].keys()],
               [], "alerts that say too little")
        names = set().union(*(re.findall(r"\bwxrelay_\w+|\bup\b", rule["query"]) for rule in self.found))
        expect([name for name in sorted(names - OF_POSTGRESQL) if not self._query(f"count({name})")], [], "metrics that are not there")
        stirred = {rule["name"] for rule in self.found if rule["state"] != "inactive"}
        expect_that("WxrelayDeadLetters" in stirred, f"the dead letter stirs its alert, not only {stirred}")
        return f"{len(self.found)} alerts on {len(names)} metrics"

    def end(self):
        for stand in (self.pushed, self.served):
            stand.end()

    def _pushed(self):
        """A relay with an answered push, a refused one, a duplicate, logins by a scan and by a callback, a dead letter, a reply window, held replies and an unexpected address."""
        self.taps = {name: Tap(name) for name in ("crm", "login", "broken")}
        self.taps["broken"].failing = 2
        self.collector = Tap("collector")
        text = f'[telemetry]\notlp = "{self.collector.url}"\n'
        text += "[accounts.shop]\n" + ACCOUNT.format(id=self.account.app_id, token=self.account.token, key=self.account.key)
        text += 'reply_window = "10s"\nheld_replies = "10m"\nallow_from = ["192.0.2.0/24"]\n'
        text += '[[accounts.shop.routes]]\nmatch = { event = "SCAN" }\nto = ["login"]\nreply = { text = "hi" }\n'
        text += '[[accounts.shop.routes]]\notherwise = true\nto = ["crm", "broken"]\n'
        text += f'[targets.login]\nrole = "identity"\nurl = "{self.taps["login"].url}"\n'
        for name in ("crm", "broken"):
            text += f'[targets.{name}]\nurl = "{self.taps[name].url}"\nretry = ["50ms"]\n'
        text += '[logins.site]\npath = "/login/site"\nto = "https://www.example.com/callback"\n'
        self.relay = self.pushed.serve(text, admin=f'token = "{TOKEN}"')
        self._push(refused=True)

    def _push(self, refused=False):
        text = push(self.account, message("text", Content="hello"))
        scan = push(self.account, message("event", Event="SCAN", EventKey="login_7", Ticket="t"))
        for request in (text, text, scan):
            expect(self.relay.post("/wx", request).status, 200, "status")
        expect(self.relay.get("/login/site", code="c0de", state="s").status, 303, "status of the callback")
        if refused:
            stranger = Account("stranger", "secure", "/wx", self.account.app_id)
            expect(self.relay.post("/wx", push(stranger, message("text", Content="no"))).status, 403, "status")

    def _served(self):
        """A relay that terminates TLS, for the certificates' metrics; its ACME order fails."""
        cert, key = self.served.path / "cert.pem", self.served.path / "key.pem"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "60",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert)
        own = Account("tls", "secure", "/wx")
        text = "[accounts.tls]\n" + ACCOUNT.format(id=own.app_id, token=own.token, key=own.key)
        text += '[targets.other]\nurl = "http://127.0.0.1:9/"\n'
        nobody = '{ acme = { domains = ["localhost"], directory = "https://127.0.0.1:9/dir" } }'
        tls = f'tls = [{{ cert = "{cert}", key = "{key}" }}, {nobody}]'
        self.served.serve(text, server=tls, admin=f'token = "{TOKEN}"')

    def _prometheus(self):
        """The shipped files, with other addresses, token file and intervals."""
        folder = self.pushed.path / "prometheus"
        folder.mkdir()
        shutil.copy(RULES / "alerts.yml", folder)
        (folder / "token").write_text(TOKEN)
        text = (RULES / "prometheus.yml").read_text()
        for old, new in {
            "scrape_interval: 15s": "scrape_interval: 1s",
            "/etc/prometheus/wxrelay-admin-token": str(folder / "token"),
            '["127.0.0.1:9180"]': json.dumps([self.pushed.admin, self.served.admin]),
        }.items():
            expect(text.count(old), 1, f"times that prometheus.yml says {old}")
            text = text.replace(old, new)
        (folder / "prometheus.yml").write_text("global:\n  evaluation_interval: 1s\n" + text)
        port = free_port()
        self.api = f"http://127.0.0.1:{port}/api/v1"
        self.pushed.programs.append((subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(self.pushed.path / f"program-{port}.log", "wb")),
            "prometheus", port))
        self.pushed.await_programs()
        eventually("Prometheus is ready", self._is_ready)
        # rate() needs what happens between two scrapes.
        eventually("a first scrape of both", lambda: len(self._query('up{job="wxrelay"} == 1')) == 2)
        self._push()

    def _metrics(self):
        texts = []
        for stand in (self.pushed, self.served):
            request = urllib.request.Request(f"http://{stand.admin}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
            with urllib.request.urlopen(request, timeout=15) as answer:
                texts.append(answer.read().decode())
        return max(texts, key=len)

    def _is_ready(self):
        try:
            return urllib.request.urlopen(self.api.replace("/api/v1", "/-/ready"), timeout=15).status == 200
        except urllib.error.HTTPError:
            return False

    def _query(self, expression):
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        return self._get("query?" + urllib.parse.urlencode({"query": expression}))["result"]

    def _get(self, path):
        try:
            with urllib.request.urlopen(f"{self.api}/{path}", timeout=15) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise Failure(f"{path}: {error.read().decode()}") from error


def panels():
    """Each panel with queries: its title, and what it asks."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel["title"], [target["expr"] for target in panel["targets"]]


def laid_out():
    """Mistakes that Grafana accepts but shows wrongly."""
    dashboard = json.loads(DASHBOARD.read_text())
    expect(sorted(panel["id"] for panel in dashboard["panels"]), list(range(1, len(dashboard["panels"]) + 1)), "ids of panels")
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        expect_that(not cells & taken and place["x"] + place["w"] <= 24, f"'{panel['title']}' overlaps another panel or the edge")
        taken |= cells
        if panel["type"] == "row":
            continue
        expect_that(panel["description"], f"'{panel['title']}' is described")
        for asked in [panel, *panel["targets"]]:
            expect(asked["datasource"], {"type": "prometheus", "uid": "${datasource}"}, f"datasource of '{panel['title']}'")
        references = [target["refId"] for target in panel["targets"]]
        expect(len(set(references)), len(references), f"refIds of '{panel['title']}'")
    return f"{len(dashboard['panels'])} panels"


def eventually(what, holds):
    deadline = time.monotonic() + PATIENCE
    while not holds():
        expect_that(time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}")
        time.sleep(0.2)


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    expect_that(done.returncode == 0, f"{command[0]} {command[1]}: {done.stdout}{done.stderr}")
