"""What deploy/ ships for alerts, against robots that refuse what the real ones refuse: `alerts.py BINARY`.

The texts for Alertmanager are Go templates. Helm, which is in another test's packages, renders them: the template engine
is the same, and they use no function but its own. Then each text is read as Alertmanager reads it: as YAML, and it is
a text only if it is nothing else. The script and the commands of the systemd units run as they are, the commands against
a relay.
"""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import helm_python as helm
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from checks import Checks, expect, expect_that  # noqa: E402
from ports import free_port  # noqa: E402

PROMETHEUS, SYSTEMD = ROOT / "deploy/prometheus", ROOT / "deploy/systemd"
# In a text of an alert: what JSON, YAML and templates have a meaning for.
NASTY = 'crm: "down" \\ {{ .x }} <b> & 你好 😀\n- a: b\n# c:'
# Bytes of a message, by what the robots' documentation says.
LIMITS = {"wecom": 4096, "dingtalk": 20_000, "feishu": 20_000}
WAIT = 30.0  # seconds
CONFIG = """\
[server]
listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:{admin}"
[queue]
path = "{store}"
[accounts.main]
path = "/wx"
app_id = "wx0123456789abcdef"
token = "abc123"
mode = "plaintext"
[targets.gone]
url = "http://127.0.0.1:9/"
retry = ["50ms"]
"""


class Robot:
    """A robot of each kind: it answers 200 to everything, and says in the body whether it takes the message."""

    def __init__(self):
        self.taken, self.refusing = [], False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (RobotHandler,), {"robot": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def judge(self, kind, body):
        """None, or the answer of a robot that refuses."""
        message = json.loads(body)
        if kind == "feishu":
            text = json.dumps(message["card"] if message["msg_type"] == "interactive" else message["content"], ensure_ascii=False)
            texts = [message["card"]["elements"][0]["content"], message["card"]["header"]["title"]["content"]] if "card" in message \
                else [message["content"]["text"]]
        else:
            part = message[message["msgtype"]]
            texts = [part[name] for name in {"text": ["content"], "markdown": ["content"] if kind == "wecom" else ["title", "text"]}[message["msgtype"]]]
            text = "".join(texts)
        if not all(isinstance(one, str) and one for one in texts):
            return {"code": 9499, "errcode": 40058}
        if len(body if kind == "feishu" else text.encode()) > LIMITS[kind]:
            return {"code": 9499, "errcode": 40058}
        if "wxrelay" not in text:
            return {"code": 19024, "errcode": 310000}
        self.taken.append((kind, texts))
        return None

    def end(self):
        self.server.shutdown()
        self.server.server_close()


class RobotHandler(BaseHTTPRequestHandler):
    robot: Robot

    def do_POST(self):
        kind, body = self.path.strip("/"), self.rfile.read(int(self.headers["content-length"]))
        refused = {"code": 11232, "errcode": 45009} if self.robot.refusing else self.robot.judge(kind, body)
        answer = refused or ({"code": 0, "msg": "success"} if kind == "feishu" else {"errcode": 0, "errmsg": "ok"})
        names = ("code", "msg") if kind == "feishu" else ("errcode", "errmsg")
        answer = json.dumps({name: answer[name] for name in names if name in answer}, separators=(",", ":")).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Standard output and error are for the runner."""


class Alerts:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, Path(folder)
        self.robot = Robot()
        self.config = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
        self.rules = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]

    def checks(self):
        yield "alertmanager.yml names receivers that exist, and each robot has one", self.named
        for kind in LIMITS:
            yield f"{kind}: its robot takes every alert that fires and that ends, the longest too", lambda k=kind: self.sent(k)
            yield f"{kind}: a text of any characters stays a text", lambda k=kind: self.nasty(k)
        yield "Grafana's contact points have the fields that Grafana reads, and URLs from its environment", self.grafana
        for kind in LIMITS:
            yield f"wxrelay-notify: {kind} is told once, again after an hour, and once when all is well", lambda k=kind: self.notified(k)
        yield "wxrelay-notify: what the robot refuses fails, and is told again", self.refused
        yield "wxrelay-notify: the URL is in no list of processes", self.hidden
        yield "the units run what is shipped, and name each other", self.units
        yield "wxrelay-watch: its commands fail when a target is down, and when the relay is", self.watched

    def receivers(self):
        return {receiver["name"]: receiver["webhook_configs"][0] for receiver in self.config["receivers"]}

    def named(self):
        receivers = self.receivers()
        expect(sorted(receivers), sorted(LIMITS), "receivers")
        routes = [self.config["route"], *self.config["route"]["routes"]]
        expect_that(all(route["receiver"] in receivers for route in routes), f"receivers of {routes}")
        for name, receiver in receivers.items():
            expect((receiver["url_file"], set(receiver)), (f"/etc/alertmanager/{name}-url", {"url_file", "max_alerts", "payload"}), name)
        severities = {rule["labels"]["severity"] for rule in self.rules}
        matched = re.findall(r'severity="(\w+)"', str(self.config["route"]))
        expect_that(set(matched) < severities, f"severities {matched} of {severities}")

    def render(self, template, data):
        """A template as Alertmanager renders it."""
        chart = self.folder / "chart"
        shutil.rmtree(chart, ignore_errors=True)
        (chart / "templates").mkdir(parents=True)
        (chart / "Chart.yaml").write_text("apiVersion: v2\nname: alerts\nversion: 0.0.0\n")
        shutil.copy(PROMETHEUS / "wxrelay.tmpl", chart / "templates/_wxrelay.tpl")
        (chart / "templates/text.txt").write_text("{{ with .Values.data }}" + template + "{{ end }}")
        rendered = helm.Chart.load(chart).render({"data": data}, name="alerts", namespace="default")
        return next(text for path, text in rendered.items() if path.endswith("text.txt"))

    def payload(self, part, data):
        """What is sent: each text rendered, and read again as YAML."""
        if isinstance(part, dict):
            return {key: self.payload(value, data) for key, value in part.items()}
        if isinstance(part, list):
            return [self.payload(value, data) for value in part]
        text = self.render(part, data)
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError:
            return text
        return text if found is None or isinstance(found, str) else found

    def post(self, kind, data):
        receiver = self.receivers()[kind]
        for state in ("Firing", "Resolved"):
            data["Alerts"][state] = data["Alerts"][state][:receiver["max_alerts"]]
        body = json.dumps(self.payload(receiver["payload"], data), ensure_ascii=False).encode()
        answer = self.robot.judge(kind, body)
        expect(answer, None, f"answer to {body.decode()[:300]}")
        return self.robot.taken[-1][1]

    def sent(self, kind):
        # Labels of a real length in place of each expression.
        filled = lambda text: re.sub(r"{{[^}]*}}", "a-target-with-a-long-name", text)
        for rule in self.rules:
            alert = {"Labels": {"severity": rule["labels"]["severity"]}, "Annotations": {name: filled(text) for name, text in rule["annotations"].items()}}
            for status, firing in (("firing", [alert] * 20), ("resolved", [])):
                data = {"Status": status, "GroupLabels": {"alertname": rule["alert"], "job": "wxrelay"},
                        "Alerts": {"Firing": firing, "Resolved": [] if firing else [alert] * 20}}
                texts = "".join(self.post(kind, data))
                expect_that(rule["alert"] in texts and alert["Annotations"]["summary"] in texts, f"{rule['alert']} is named in {texts}")
                if firing:
                    expect_that(alert["Annotations"]["runbook"] in texts, f"the runbook of {rule['alert']} is in {texts}")
        return f"{len(self.rules)} alerts"

    def nasty(self, kind):
        alert = {"Labels": {"severity": "page"}, "Annotations": dict.fromkeys(("summary", "description", "runbook"), NASTY)}
        data = {"Status": "firing", "GroupLabels": {"alertname": "Test"}, "Alerts": {"Firing": [alert], "Resolved": []}}
        expect("".join(self.post(kind, data)).count(NASTY), 3, "times that the text is there")

    def grafana(self):
        found = yaml.safe_load((ROOT / "deploy/grafana/contact-points.yml").read_text())
        known = {"wecom": {"url", "msgtype"}, "dingding": {"url", "msgType", "title"}, "webhook": {"url", "httpMethod", "payload"}}
        expect(found["apiVersion"], 1, "apiVersion")
        receivers = [receiver for point in found["contactPoints"] for receiver in point["receivers"]]
        expect({receiver["type"]: set(receiver["settings"]) for receiver in receivers}, known, "settings by type")
        for receiver in receivers:
            expect_that(re.fullmatch(r"\$\w+_ROBOT_URL", receiver["settings"]["url"]), f"{receiver['uid']}: url")

    def notify(self, kind, what, path="told"):
        credentials, state = self.folder / f"{kind}-credentials", self.folder / f"{kind}-{path}"
        for folder in (credentials, state):
            folder.mkdir(exist_ok=True)
        (credentials / "robot-url").write_text(f"{self.robot.url}/{kind}\n")
        environment = {"PATH": os.environ["PATH"], "ROBOT": kind, "CREDENTIALS_DIRECTORY": str(credentials), "STATE_DIRECTORY": str(state)}
        done = subprocess.run([str(SYSTEMD / "wxrelay-notify"), what], env=environment, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stderr, state / "failed"

    def notified(self, kind):
        def told(what):
            self.robot.taken.clear()
            code, error, _ = self.notify(kind, what)
            expect(code, 0, f"exit code of {what}: {error}")
            return [texts[0] for found, texts in self.robot.taken if found == kind]
        expect(told("recovered"), [], "what is told when nothing had failed")
        expect_that("告警" in told("failed")[0], "the first failure is told")
        expect(told("failed"), [], "what is told a minute later")
        marker = self.folder / f"{kind}-told/failed"
        os.utime(marker, (marker.stat().st_mtime - 3700,) * 2)
        expect(len(told("failed")), 1, "messages after an hour")
        expect_that("恢复" in told("recovered")[0], "the end is told")
        expect(told("recovered"), [], "what is told when all stays well")
        expect_that("停止" in told("stopped")[0], "the stop is told")

    def refused(self):
        self.robot.refusing = True
        code, error, marker = self.notify("wecom", "failed", "refused")
        self.robot.refusing = False
        expect((code, "refused the message" in error, marker.exists()), (1, True, False), f"exit code, {error}, whether it counts as told")
        expect(self.notify("wecom", "failed", "refused")[0], 0, "exit code of the next try")
        expect(self.notify("wecom", "unknown")[0], 2, "exit code for an unknown state")

    def hidden(self):
        """A curl before the real one on the path writes down its arguments."""
        folder = self.folder / "bin"
        folder.mkdir()
        (folder / "curl").write_text(f'#!/bin/sh\necho "$@" >{folder}/arguments\nexec {shutil.which("curl")} "$@"\n')
        (folder / "curl").chmod(0o755)
        before = os.environ["PATH"]
        os.environ["PATH"] = f"{folder}:{before}"
        try:
            expect(self.notify("wecom", "stopped")[0], 0, "exit code")
        finally:
            os.environ["PATH"] = before
        expect_that(self.robot.url not in (folder / "arguments").read_text(), "the URL is an argument")

    def units(self):
        watch, notify = (SYSTEMD / "wxrelay-watch.service").read_text(), (SYSTEMD / "wxrelay-notify@.service").read_text()
        script = (SYSTEMD / "wxrelay-notify").read_text()
        told = re.findall(r"wxrelay-notify@(\w+)\.service", watch + (SYSTEMD / "notify.conf").read_text())
        expect(sorted(told), ["failed", "recovered", "stopped"], "what the units tell")
        expect_that(all(f"  {what})" in script for what in told), "the script knows each")
        page = (ROOT / "docs/alerts.md").read_text()
        path = re.search(r"ExecStart=(\S+) %i", notify)[1]
        expect_that(f"deploy/systemd/wxrelay-notify {path}\n" in page, f"the page installs {path}")
        expect_that(os.access(SYSTEMD / "wxrelay-notify", os.X_OK), "the script can be run")


    def watched(self):
        port, config = free_port(), self.folder / "config.toml"
        config.write_text(CONFIG.format(admin=port, store=self.folder / "store"))
        unit = (SYSTEMD / "wxrelay-watch.service").read_text().replace("9180", str(port))
        ready, up = (shlex.split(line) for line in re.findall(r"^ExecStart=(.*)", unit, re.M))
        # As systemd finds it on its path.
        (self.folder / "path").mkdir()
        (self.folder / "path/wxrelay").symlink_to(self.binary)
        environment = os.environ | {"PATH": f"{self.folder}/path:{os.environ['PATH']}"}
        succeeds = lambda command: subprocess.run(command, env=environment, capture_output=True, timeout=WAIT).returncode == 0
        relay = subprocess.Popen([str(self.binary), "serve", "-c", str(config)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE, text=True)
        try:
            lines = (json.loads(line) for line in relay.stderr)
            push = next(line["address"] for line in lines if line.get("listener") == "push")
            eventually("the relay is ready", lambda: succeeds(ready))
            expect_that(succeeds(up), "the check of the targets fails before one is down")
            for number in range(20):
                simulate = [str(self.binary), "simulate", "-c", str(config), "--to", f"http://{push}/wx", "text", f"hello {number}"]
                expect(subprocess.run(simulate, capture_output=True, timeout=WAIT).returncode, 0, "exit code of simulate")
            eventually("the check of the targets fails", lambda: not succeeds(up))
            expect_that(succeeds(ready), "the relay is ready, whatever its targets do")
        finally:
            relay.terminate()
            relay.stderr.close()
            relay.wait(WAIT)
        expect_that(not succeeds(ready), "the check of a stopped relay succeeds")


def eventually(what, holds):
    deadline = time.monotonic() + WAIT
    while not holds():
        expect_that(time.monotonic() < deadline, f"not within {WAIT:.0f} s: {what}")
        time.sleep(0.1)


def main():
    binary = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(prefix="wxrelay-alerts-") as folder:
        checks, alerts = Checks(), Alerts(binary, folder)
        try:
            for name, check in alerts.checks():
                checks.run(name, check)
        finally:
            alerts.robot.end()
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
