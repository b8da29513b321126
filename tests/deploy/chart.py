"""The Helm chart: `chart.py BINARY`. Helm itself lints and renders it; Kubernetes' schemas check what comes of it.

`wxrelay check` reads the configuration of a rendered pod, from its ConfigMap, its Secret and its environment, and promtool
the rules of the PrometheusRule.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from checks import Checks, expect, expect_that  # noqa: E402

CHART = ROOT / "deploy/helm/wxrelay"
# The oldest that the chart names, and newer ones.
VERSIONS = ("1.27", "1.31", "1.34")
CONFIG = """\
[accounts.main]
path = "/wechat/events"
app_id = "wx0123456789abcdef"
token = { credential = "token" }
encoding_aes_key = { credential = "encoding_aes_key" }

[[accounts.main.routes]]
otherwise = true
to = ["handler"]

[targets.handler]
url = "http://handler.default.svc:9000/wechat"
format = "json"
"""
SECRET = {"token": "abc123", "encoding_aes_key": "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG", "pg-password": "secret",
          "admin-token": "0123456789abcdef0123456789abcdef"}
PLAIN = {"config": CONFIG, "postgres": {"url": "postgres://wxrelay@pg1:5432,pg2:5432/wxrelay"}}
ALL = {
    **PLAIN, "replicaCount": 5, "image": {"repository": "registry.example.com/wxrelay", "tag": "0.2.0"},
    "postgres": {**PLAIN["postgres"], "ca": "pg-ca.pem", "pooler": True, "standby": "required"}, "imagePullSecrets": [{"name": "registry"}],
    "trustedProxies": ["10.0.0.0/8"], "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
    "antiAffinity": "preferred", "resources": {"limits": {"memory": "256Mi"}}, "extraEnv": [{"name": "WXRELAY__LOG__LEVEL", "value": "debug"}],
    "podAnnotations": {"a": "b"}, "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "priorityClassName": "high", "networkPolicy": {"enabled": True, "pushFrom": [{"podSelector": {"matchLabels": {"app": "haproxy"}}}],
                                                   "adminFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}, "prometheusRule": {"enabled": True}, "grafanaDashboard": {"enabled": True},
}
REFUSED = {
    "one replica": {"replicaCount": 1},
    "no configuration": {"config": ""},
    "no PostgreSQL": {"postgres": {"url": ""}},
    "a password in the URL, which the pod would show": {"postgres": {"url": "postgres://wxrelay:secret@pg1/wxrelay"}},
    "a spool without a unit": {"spool": {"size": "2"}},
    "a misspelt value": {"replicas": 3},
    "a misspelt value in a table": {"postgres": {**PLAIN["postgres"], "standbys": "warn"}},
    "an unknown affinity": {"antiAffinity": "none"},
}


class Chart:
    def __init__(self, binary):
        self.binary = binary
        self.chart = helm.Chart.load(CHART)

    def checks(self):
        yield "helm lint finds nothing, with the fewest values and with all", self.lint
        yield "every object is valid in each supported version of Kubernetes", self.valid
        yield "the schema refuses values that cannot work", self.refused
        yield "a replica is probed, stopped and kept apart as docs/machines.md says", self.replica
        yield "no secret is in an object: they are files of the Secret", self.secrets
        yield "`wxrelay check` accepts what a pod gets", self.configured
        yield "the disruption budget, the services and the network policy select the replicas", self.selected
        yield "each replica has a volume for its spool, which outlives it", self.spool
        yield "a changed configuration restarts the replicas", self.restarted
        yield "promtool accepts the PrometheusRule, which has all alerts", self.rules
        yield "the packed chart is whole", self.packed

    def render(self, values, name="relay"):
        self.chart.validate_schema(values)
        rendered = self.chart.render(values, name=name, namespace="wechat")
        found = {}
        for path, text in rendered.items():
            if path.endswith(".yaml"):
                for one in yaml.safe_load_all(text):
                    if one:
                        found[one["kind"], one["metadata"]["name"]] = one
        return found

    def lint(self):
        for values in (PLAIN, ALL):
            report = helm.lint(CHART, values, strict=True, kube_version=f"v{VERSIONS[-1]}.0")
            # It would have an icon.
            told = [message for message in report["messages"] if "icon is recommended" not in str(message)]
            expect((told, report["errors"]), ([], []), "findings")
        return helm.helm_sdk_version()

    def valid(self):
        count = 0
        for values in (PLAIN, ALL):
            for (kind, name), one in self.render(values).items():
                if one["apiVersion"].startswith("monitoring.coreos.com/"):
                    continue
                for version in VERSIONS:
                    kubernetes_validate.validate(one, version, strict=True)
                    count += 1
        return f"{count} checks"

    def refused(self):
        for what, values in REFUSED.items():
            try:
                self.chart.validate_schema({**PLAIN, **values})
            except helm.HelmValuesError:
                continue
            expect_that(False, f"{what}: accepted")
        self.chart.validate_schema(ALL)
        return f"{len(REFUSED)} kinds"

    def pod(self, values):
        return self.render(values)["StatefulSet", "relay-wxrelay"]["spec"]["template"]["spec"]

    def replica(self):
        found = self.render(PLAIN)["StatefulSet", "relay-wxrelay"]["spec"]
        expect((found["replicas"], found["podManagementPolicy"]), (3, "Parallel"), "replicas")
        for values in (PLAIN, ALL):
            pod = self.pod(values)
            (container,) = pod["containers"]
            probes = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "readiness", "startup")}
            expect(probes, {"liveness": "/livez", "readiness": "/readyz", "startup": "/livez"}, "probes")
            expect(pod["terminationGracePeriodSeconds"], 30, "time to stop")
            expect_that("lifecycle" not in container, "there is no preStop")
            security, context = container["securityContext"], pod["securityContext"]
            expect((security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"], security["capabilities"]), (True, False, {"drop": ["ALL"]}), "container")
            expect((context["runAsUser"], context["runAsNonRoot"], context["fsGroup"], context["seccompProfile"]["type"]),
                   (65532, True, 65532, "RuntimeDefault"), "pod")
            expect(pod["automountServiceAccountToken"], False, "token of the cluster")
        user = re.search(r"^USER (\d+):", (ROOT / "deploy/docker/Dockerfile").read_text(), re.M).group(1)
        expect(user, "65532", "the image's user")
        apart = self.pod(PLAIN)["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
        expect(apart["topologyKey"], "kubernetes.io/hostname", "kept apart by")
        expect(list(self.pod(ALL)["affinity"]["podAntiAffinity"]), ["preferredDuringSchedulingIgnoredDuringExecution"], "preferred")

    def secrets(self):
        pod = self.pod(ALL)
        (volume,) = [volume for volume in pod["volumes"] if "secret" in volume]
        # 0440: the group is the relay's.
        expect(volume["secret"], {"secretName": "wxrelay", "defaultMode": 0o440}, "the Secret")
        (container,) = pod["containers"]
        expect([one for one in container["env"] if "valueFrom" in one], [], "variables from secrets")
        expect([kind for kind, _ in self.render(ALL) if kind == "Secret"], [], "Secrets of the chart")

    def configured(self):
        for values in (PLAIN, ALL):
            objects = self.render(values)
            (container,) = self.pod(values)["containers"]
            with tempfile.TemporaryDirectory(prefix="wxrelay-chart-") as folder:
                places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
                config, secrets = Path(folder) / "config", Path(folder) / "secrets"
                config.mkdir()
                secrets.mkdir()
                (config / "config.toml").write_text(objects["ConfigMap", "relay-wxrelay"]["data"]["config.toml"])
                for key, value in {**SECRET, "pg-ca.pem": authority()}.items():
                    (secrets / key).write_text(value)
                    # As Kubernetes sets it for the group.
                    os.chmod(secrets / key, 0o440)
                environment = {one["name"]: one["value"].replace(places["secrets"], str(secrets)) for one in container["env"]}
                environment["WXRELAY_CONFIG"] = str(config / "config.toml")
                environment["WXRELAY__QUEUE__SPOOL"] = f"{folder}/spool"
                for strict in ("false", "true"):
                    environment["WXRELAY__SERVER__STRICT"] = strict
                    done = subprocess.run([self.binary, "check"], env=environment, capture_output=True, text=True, timeout=60)
                    expect(done.returncode, 0, f"exit code of check: {done.stdout}{done.stderr}")
                    told = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("warning") and "identity" not in line]
                    expect(told, [], "warnings")
            # The image's own folder of the configuration.
            expect_that(f"ENV WXRELAY_CONFIG={places['config']}/config.toml" in (ROOT / "deploy/docker/Dockerfile").read_text(), "where the image looks")

    def selected(self):
        objects = self.render(ALL)
        labels = objects["StatefulSet", "relay-wxrelay"]["spec"]["template"]["metadata"]["labels"]
        selectors = {
            "StatefulSet": objects["StatefulSet", "relay-wxrelay"]["spec"]["selector"]["matchLabels"],
            "budget": objects["PodDisruptionBudget", "relay-wxrelay"]["spec"]["selector"]["matchLabels"],
            "policy": objects["NetworkPolicy", "relay-wxrelay"]["spec"]["podSelector"]["matchLabels"],
            "service": objects["Service", "relay-wxrelay"]["spec"]["selector"],
            "replicas": objects["Service", "relay-wxrelay-replicas"]["spec"]["selector"],
        }
        for name, selector in selectors.items():
            expect_that(selector and selector.items() <= labels.items(), f"{name} selects the replicas: {selector}")
        expect(objects["PodDisruptionBudget", "relay-wxrelay"]["spec"]["maxUnavailable"], 1, "replicas that may be away")
        expect(objects["StatefulSet", "relay-wxrelay"]["spec"]["serviceName"], "relay-wxrelay-replicas", "the headless service")
        monitor = objects["ServiceMonitor", "relay-wxrelay"]["spec"]
        admin = objects["Service", "relay-wxrelay-replicas"]
        expect_that(monitor["selector"]["matchLabels"].items() <= admin["metadata"]["labels"].items(), "Prometheus finds the headless service")
        expect(admin["metadata"]["labels"][monitor["jobLabel"]], "wxrelay", "the job's name")
        ports = [port["port"] for rule in objects["NetworkPolicy", "relay-wxrelay"]["spec"]["ingress"] for port in rule["ports"]]
        expect(ports, ["push", "admin"], "ports of the network policy")
        # A release that is called as the chart does not repeat the name.
        expect_that(("StatefulSet", "wxrelay") in self.render(PLAIN, name="wxrelay"), "the name of a release `wxrelay`")

    def spool(self):
        found = self.render(PLAIN)["StatefulSet", "relay-wxrelay"]["spec"]
        (claim,) = found["volumeClaimTemplates"]
        expect(claim["spec"]["resources"]["requests"]["storage"], "2Gi", "size")
        expect(set(found["persistentVolumeClaimRetentionPolicy"].values()), {"Retain"}, "what becomes of it")
        (container,) = found["template"]["spec"]["containers"]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "spool"]
        expect_that(not mount.get("readOnly"), "it can be written")
        (variable,) = [one["value"] for one in container["env"] if one["name"] == "WXRELAY__QUEUE__SPOOL"]
        expect_that(variable.startswith(mount["mountPath"] + "/"), f"the spool {variable} is in the volume")
        off = self.render({**PLAIN, "spool": {"enabled": False}})["StatefulSet", "relay-wxrelay"]["spec"]
        expect_that("volumeClaimTemplates" not in off and "SPOOL" not in str(off), "without a spool there is no volume")

    def restarted(self):
        changed = {**PLAIN, "config": CONFIG.replace("9000", "9001")}
        marks = [self.render(values)["StatefulSet", "relay-wxrelay"]["spec"]["template"]["metadata"]["annotations"] for values in (PLAIN, PLAIN, changed)]
        expect_that(marks[0] == marks[1] != marks[2], "annotations of the pods")

    def rules(self):
        spec = self.render(ALL)["PrometheusRule", "relay-wxrelay"]["spec"]
        expect(spec, yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text()), "rules")
        if shutil.which("promtool"):
            with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
                yaml.safe_dump(spec, file)
                done = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True, timeout=60)
            expect(done.returncode, 0, done.stderr)
        else:
            expect_that(not os.environ.get("CI"), "promtool is installed")
        board = self.render(ALL)["ConfigMap", "relay-wxrelay-dashboard"]["data"]["wxrelay.json"]
        expect(board.strip(), (ROOT / "deploy/grafana/dashboard.json").read_text().strip(), "dashboard")
        return f"{sum(len(group['rules']) for group in spec['groups'])} alerts"

    def packed(self):
        with tempfile.TemporaryDirectory(prefix="wxrelay-chart-") as folder:
            path = self.chart.save(folder)
            with helm.Chart.load(path) as packed:
                expect(packed.render(ALL, name="relay"), self.chart.render(ALL, name="relay"), "what the packed chart renders")
        version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
        expect(self.chart.metadata["appVersion"], version, "appVersion")


def authority():
    """A certificate, for `check` to read."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=pg",
                   "-keyout", f"{folder}/key", "-out", f"{folder}/cert"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return Path(folder, "cert").read_text()


def main():
    checks, chart = Checks(), Chart(Path(sys.argv[1]).resolve())
    for name, check in chart.checks():
        checks.run(name, check)
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
