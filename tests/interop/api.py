"""The admin API against its own OpenAPI document: schemathesis sends what the document allows, and what it does not.

The relay has a token, events and dead letters. Every check of schemathesis is on but one: that a wrong token gets 401 or
403 is left to tests/it/admin_routes.rs, as too many get 429; `/api/tail`, which has no end, is left to tests/it/tail.rs.
"""
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from rig import WAIT, expect, expect_that, free_port
from stand import Stand, Tap
from wechat import Account, message, push

TOKEN = "interop-admin-token"
EXAMPLES = 25  # an operation
TIME = 150  # seconds

# What the document can't say: a replay wants at least one filter, `to` a target that is configured and is another one.
SETTINGS = """
[[operations]]
include-name = "POST /api/events/replay"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]

[[operations]]
include-name = "POST /api/targets/{name}/redirect"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]

[[operations]]
include-name = "POST /api/events/{id}/replay"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
"""


class Api:
    def __init__(self, binary):
        self.stand = Stand(binary)

    def start(self):
        account, self.crm = Account("shop", "secure", "/wx"), Tap("crm")
        self.port = free_port()
        text = f'[accounts.shop]\npath = "/wx"\napp_id = "{account.app_id}"\ntoken = "{account.token}"\nmode = "secure"\n'
        text += f'encoding_aes_key = "{account.key}"\n[targets.crm]\nurl = "{self.crm.url}/"\n'
        text += '[targets.gone]\nurl = "http://127.0.0.1:9/"\nretry = []\n'
        relay = self.stand.serve(text, admin=f'token = "{TOKEN}"', admin_listen=f"127.0.0.1:{self.port}")
        for content in ("one", "two", "three"):
            expect(relay.post("/wx", push(account, message("text", Content=content))).status, 200, "status")
        self.crm.wait_for(lambda request: request.body, 3)

    def checks(self):
        yield "schemathesis: the admin API answers as its OpenAPI document says", self.described
        yield "the relay still serves after it, and every delivery is accounted for", self.sound

    def ask(self, path):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return answer.read()

    def described(self):
        document = self.stand.path / "openapi.json"
        document.write_bytes(self.ask("/api/openapi.json"))
        settings = self.stand.path / "schemathesis.toml"
        settings.write_text(SETTINGS)
        command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(settings), "run", str(document)]
        command += ["--url", f"http://127.0.0.1:{self.port}", "--header", f"Authorization: Bearer {TOKEN}", "--checks", "all"]
        command += ["--exclude-checks", "ignored_auth", "--exclude-path", "/api/tail", "--max-examples", str(EXAMPLES), "--seed", "1", "--no-color"]
        command += ["--request-timeout", "10", "--max-time", "90"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIME, cwd=self.stand.path)
        expect_that(run.returncode == 0, (run.stdout + run.stderr)[-6000:])
        return next((line.strip() for line in run.stdout.splitlines() if "generated" in line), "")

    def sound(self):
        expect_that(json.loads(self.ask("/api/status"))["ready"], "not ready")
        expect(self.stand.audit()["unaccounted"], 0, "unaccounted")

    def end(self):
        self.stand.end()
