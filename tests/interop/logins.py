"""Logins by WeChat behind the relay, with unmodified clients: social-auth-core, django-allauth, authlib, co-wechat-oauth, @auth/core.

A browser (first `requests`, then Chromium) goes from the client to a stand-in for WeChat (open_platform.py), to the relay on
the callback domain, and back to the client. A redirecting page of the old kind, the control, fails the same corpus.
"""
import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import requests

from open_platform import WECHAT, Authority, Names, OpenPlatform
from rig import WAIT, expect, expect_that
from stand import HERE, Stand
from wechat import Account

DOMAIN = "login.example.com"
PYTHON_SITES, NODE_SITES = ["social", "socialapp", "authlib", "allauth"], ["cowechat", "authjs"]
SITES = PYTHON_SITES + NODE_SITES
CALLBACKS = {"allauth": "/accounts/weixin/login/callback/", "authjs": "/auth/callback/wechat"}
BEGINNINGS = {"allauth": "/accounts/weixin/login/"}
CORPUS = 100_000
VERIFY_FILE = "MP_verify_Ab12.txt"


class Logins:
    def __init__(self, binary):
        self.stand = Stand(binary)
        self.ends = []

    def start(self):
        hosts = [f"{site}.example.com" for site in SITES]
        self.authority = Authority(self.stand.path, [DOMAIN, "third.example.com", *WECHAT, *hosts])
        self.names = Names()
        self.platform = OpenPlatform(self.authority, DOMAIN)
        self.ends += [self.names.end, self.platform.end]
        ports = self.names.ports
        ports |= dict.fromkeys(WECHAT, self.platform.port)
        (self.stand.path / VERIFY_FILE).write_text("Ab12")
        account = Account("shop", "secure", "/wx")
        text = f'[accounts.shop]\npath = "/wx"\napp_id = "{account.app_id}"\ntoken = "{account.token}"\nencoding_aes_key = "{account.key}"\n'
        for site in SITES:
            callback = f"https://{site}.example.com{CALLBACKS.get(site, '/callback')}"
            text += f'[logins.{site}]\npath = "/login/{site}"\nto = "{callback}"\nhome = "https://{site}.example.com/"\n'
        text += '[logins.corpus]\npath = "/login/corpus"\nto = "https://corpus.example.com/callback?x=1"\n'
        server = f'verify_files = ["{VERIFY_FILE}"]\ntls = {{ cert = "{self.authority.cert}", key = "{self.authority.key}" }}'
        self.relay = self.stand.serve(text, server=server)
        ports[DOMAIN] = self.port = self.relay.address[1]
        environment = {"HTTPS_PROXY": self.names.url, "REQUESTS_CA_BUNDLE": str(self.authority.ca), "NO_PROXY": "",
                       "NODE_EXTRA_CA_CERTS": str(self.authority.ca), "NODE_PATH": str(HERE / "node_modules")}
        pair = [str(self.authority.cert), str(self.authority.key)]
        os.environ |= environment
        for site in SITES:
            command = [sys.executable, str(HERE / "login_clients.py"), site, *pair]
            if site in NODE_SITES:
                command = ["node", str(HERE / "login_clients.js"), site, *pair, json.dumps(dict(ports))]
            process = self.stand.process(site, command)
            ports[f"{site}.example.com"] = process.wait_for(lambda line: "port" in line, "port of the site")[0]["port"]

    def checks(self):
        for site in SITES:
            yield f"{site}: a person logs in, by code and state alone", lambda site=site: self.logs_in(site)
            yield f"{site}: a forged state, and the same callback again, are refused by the client", lambda site=site: self.refuses(site)
        yield "a person who refuses comes back to the client, with the state alone", self.refused_by_person
        yield "a stop on the way shows a page of the relay, without anything of the request", self.stopped
        yield "WeChat's console finds the verification file", self.verification_file
        yield f"{CORPUS:,} random queries lead to the configured URL or nowhere, for WHATWG's URL", self.corpus
        yield "the control, a page that redirects where the query says, fails the same corpus", self.control
        yield "1,000 other paths of the callback domain redirect nowhere and show nothing of the request", self.crawl
        yield "no code and no state is in the relay's log or metrics", self.private
        yield "Chromium: two people at two sites at once, no referrer with a code", self.browser

    def exactly(self, browser, url):
        """The response to this URL, which `requests` would normalize."""
        request = browser.prepare_request(requests.Request("GET", f"https://{DOMAIN}/"))
        request.url = url
        return browser.send(request, allow_redirects=False, timeout=WAIT, proxies={"https": self.names.url}, verify=str(self.authority.ca))

    def visit(self, browser, url, method="GET"):
        """The responses from `url` on, redirects included."""
        crossed = []
        for _ in range(10):
            response = browser.request(method, url, allow_redirects=False, timeout=WAIT)
            crossed.append(response)
            location = response.headers.get("location")
            if response.status_code not in (301, 302, 303, 307, 308) or not location:
                return crossed
            url = requests.compat.urljoin(url, location)
        return crossed

    def begin(self, site):
        browser = requests.Session()
        return browser, self.visit(browser, f"https://{site}.example.com{BEGINNINGS.get(site, '/login')}")

    def logs_in(self, site):
        browser, crossed = self.begin(site)
        hop = [response for response in crossed if urlsplit(response.url).hostname == DOMAIN]
        expect([response.status_code for response in hop], [303], f"the relay's answers, of {[r.url for r in crossed]}")
        sent, received = (parse_qs(urlsplit(url).query) for url in (hop[0].url, hop[0].headers["location"]))
        expect(received, {key: sent[key] for key in ("code", "state")}, "what the client got")
        expect_that("hello oPerson1" in crossed[-1].text, f"logged in: {crossed[-1].status_code} {crossed[-1].text[:200]}")
        return f"{len(crossed)} hops"

    def refuses(self, site):
        forged = f"https://{DOMAIN}/login/{site}?{urlencode({'code': self.platform.code('oAttacker'), 'state': 'f0rged'})}"
        for browser in (requests.Session(), self.begin(site)[0]):
            crossed = self.visit(browser, forged)
            expect_that("oAttacker" not in crossed[-1].text, f"a forged state logs in: {crossed[-1].text[:200]}")
        browser, crossed = self.begin(site)
        callback = next(response.url for response in crossed if urlsplit(response.url).hostname == DOMAIN)
        code = parse_qs(urlsplit(callback).query)["code"][0]
        expect_that(code in self.platform.used, "the code was used")
        again = self.visit(requests.Session(), callback)
        expect_that("hello" not in again[-1].text, f"the same callback logs another browser in: {again[-1].text[:200]}")

    def refused_by_person(self):
        self.platform.refuses = True
        _, crossed = self.begin("social")
        hop = next(response for response in crossed if urlsplit(response.url).hostname == DOMAIN)
        expect(list(parse_qs(urlsplit(hop.headers["location"]).query)), ["state"], "what the client got")
        expect_that("hello" not in crossed[-1].text, "nobody is logged in")

    def stopped(self):
        for query in ("", "?state=a&state=b", "?code=secret123&code=secret123", "?c%6fde=secret123"):
            response = self.exactly(requests.Session(), f"https://{DOMAIN}/login/social{query}")
            expect((response.status_code, "secret123" in response.text), (400, False), query)
            expect_that("请回到原网站重新登录" in response.text and "https://social.example.com/" in response.text, response.text)

    def verification_file(self):
        response = requests.get(f"https://{DOMAIN}/{VERIFY_FILE}", timeout=WAIT)
        expect((response.status_code, response.content, response.headers["x-content-type-options"]), (200, b"Ab12", "nosniff"), "the file")

    def _corpus(self, port, path, to, count):
        command = ["node", str(HERE / "login_corpus.js"), str(port), path, to, str(count), "7", *(["tls"] if port == self.port else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        expect_that(done.returncode == 0, done.stderr[-2000:])
        return json.loads(done.stdout)

    def corpus(self):
        found = self._corpus(self.port, "/login/corpus", "https://corpus.example.com/callback?x=1", CORPUS)
        expect((found["elsewhere"], found["examples"]), (0, []), "redirects elsewhere")
        expect_that(found["redirects"] > CORPUS / 100, f"only {found['redirects']} redirects: the corpus is too wild")
        return f"{found['redirects']:,} redirects"

    def control(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), OpenRedirect)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.ends += [server.shutdown, server.server_close]
        found = self._corpus(server.server_address[1], "/get-weixin-code.html", "https://corpus.example.com/callback", 2000)
        expect_that(found["elsewhere"] > 0, f"the control redirects elsewhere: {found}")
        return f"{found['elsewhere']} of 2,000 elsewhere"

    def crawl(self):
        words = ["", "login", "social", "callback", "wx", "admin", "console", "api", "metrics", "index.html", "%2e%2e", "..", "//evil.example", "MP_verify_x.txt"]
        browser, asked = requests.Session(), 0
        for one in words:
            for two in words:
                for query in ("?code=c0de&state=x", "?redirect_uri=https://evil.example/c0de", "", "?<script>c0de", "?%0d%0a"):
                    url = f"https://{DOMAIN}/{one}/{two}{query}"
                    response = self.exactly(browser, url)
                    asked += 1
                    is_login = response.request.url.split("?")[0].rstrip("/").endswith("/login/social")
                    expect_that(is_login or (response.status_code >= 400 and "location" not in response.headers), f"{url}: {response.status_code}")
                    expect_that("c0de" not in response.text, f"{url} shows the request")
        return f"{asked} paths"

    def private(self):
        metrics = requests.get(f"http://{self.stand.admin}/metrics", timeout=WAIT).text
        passed = [line for line in metrics.splitlines() if line.startswith('wxrelay_logins_total{login="social",result="passed"}')]
        expect_that(passed and float(passed[0].rsplit(" ", 1)[1]) > 0, "logins are counted")
        log = "\n".join(json.dumps(line) for line in self.stand.processes[0].since(0))
        secrets = [*self.platform.codes, *(state for _, _, state in self.platform.asked if len(state) > 8)]
        expect_that(len(secrets) > 10, "codes and states to look for")
        expect([secret for secret in secrets if secret in log or secret in metrics], [], "secrets in the open")

    def browser(self):
        executable = shutil.which("chromium") or shutil.which("chromium-browser")
        if executable is None or not (HERE / "node_modules" / "playwright-core").is_dir():
            expect_that(not os.environ.get("CI"), "chromium and playwright-core are installed in CI")
            return "SKIPPED: chromium or playwright-core is missing"
        self.names.ports["third.example.com"] = self.platform.port
        wanted = {"executable": executable, "proxy": self.names.url, "spki": base64.b64encode(self.authority.spki).decode(), "sites": ["social", "cowechat"]}
        done = subprocess.run(["node", str(HERE / "login_browser.js"), json.dumps(wanted)], capture_output=True, text=True, timeout=120)
        expect_that(done.returncode == 0, done.stderr[-2000:])
        found = json.loads(done.stdout)
        for page in found["together"]:
            expect_that(page["text"].startswith("hello oPerson1"), f"{page}")
            expect([status for status, host in page["crossed"] if host == DOMAIN], [303], f"hops of {page['site']}")
        expect([referrer for referrer in found["referrers"] if "code=" in referrer], [], "referrers with a code")
        expect_that(len(found["referrers"]) >= 2, "the pages load an image of another site")
        expect_that("重新登录" in found["stopped"]["text"] and found["stopped"]["color"] != "none", f"the page has its style: {found['stopped']}")

    def end(self):
        for end in reversed(self.ends):
            end()
        self.ends.clear()
        self.stand.end()


class OpenRedirect(BaseHTTPRequestHandler):
    """The page of the old kind: it sends code and state wherever the query says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        target = query.pop("redirect_uri", ["https://corpus.example.com/callback"])[0]
        location = "".join(sign for sign in target + "?" + urlencode(query, doseq=True) if " " < sign < "\x7f")
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Standard output and error are for the runner."""
