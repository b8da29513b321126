"""AI bots behind the relay: `run.sh BINARY bots.py` asks each bot eight questions straight and eight through the relay.

A question takes the bot's model 2, 7, 12 or 20 s, and its answer is short or 5,000 bytes long. WeChat's side has WeChat's
timing: a try ends after 5 s, the next begins when it has ended, there are three, with the same MsgId. A user who has not
got the whole answer sends the word that fetches it, a few times. Counted is who gets the whole answer.

The relay has the configuration of docs/handlers/bots.md, as it stands there, and the page must have the numbers that are
found here. Bots that a package registry has are run as they are, in an environment each (bot_hosts/); the others are
stand-ins (bot_manners.py). All questions are asked at the same time, so that the whole takes less than two minutes.
"""
import argparse
import asyncio
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPResponse
from itertools import groupby
from pathlib import Path

import xmltodict

import bot_manners
from bot_model import question, think
from openai_endpoint import Endpoint
from rig import Checks, Failure, Process, expect, expect_that
from stand import HANDLERS, HERE, Stand
from wechat import GH_ID, Account, message, push

SECONDS = (2, 7, 12, 20)
LENGTHS = {"short": 90, "long": 5000}
TRY = 5.0  # seconds until WeChat hangs up
TRIES = 3
WORDS = 8  # how often a user sends the word
LIMIT = 2048  # bytes of a text that WeChat shows
PATIENCE = 100.0  # seconds, for one question
PAGE = HANDLERS / "bots.md"
FAULT = "该公众号提供的服务出现故障，请稍后再试"
# A note of a bot at the end of a piece of its answer, or instead of one.
NOTE = re.compile(r"【[^】]*】")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Bot:
    """A bot, and how its users and its own settings are."""

    name: str  # of its target, and of its recipe's heading in the page
    mode: str = "secure"  # when it is asked straight
    path: str = "/wx"
    word: str = "1"
    manner: type | None = None  # a stand-in
    host: str | None = None  # a folder of bot_hosts
    settings: dict = field(default_factory=dict)  # of the host
    # Settings for asking it straight, where the recipe changes them.
    straight_settings: dict | None = None
    ports: dict = field(default_factory=dict)  # way -> port
    counts: dict = field(default_factory=dict)  # way -> questions whose answer was seen, of eight


def bots():
    return [
        Bot("cowagent", manner=bot_manners.CowAgent),
        Bot("dify", manner=bot_manners.Dify),
        Bot("bot-on-anything", "plaintext", "/", "继续", manner=bot_manners.BotOnAnything),
        Bot("aiwechat-vercel", "plaintext", "/api/wx", manner=bot_manners.AiwechatVercel),
        Bot("astrbot", path="/callback/command", host="astrbot"),
        Bot("langbot-passive", "plaintext", "/callback/command", host="langbot", settings={"MODE": "passive"}),
        Bot("langbot-drop", "plaintext", "/callback/command", host="langbot", settings={"MODE": "drop"}),
        Bot("werobot", path="/", host="werobot"),
        Bot("nonebot", "plaintext", "/wxmp/revice/{app_id}/", host="nonebot", settings={"TIMEOUT": "60"}, straight_settings={}),
        Bot("openai"),
    ]


class Page:
    """docs/handlers/bots.md: the settings of the account, a recipe for each bot, and the table of what was found."""

    def __init__(self):
        text = PAGE.read_text()
        blocks = re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S)
        self.account = blocks[0]
        self.recipes = {name: block for block in blocks[1:] for name in re.findall(r"^\[targets\.([\w-]+)\]", block, re.M)}
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
        self.found = {cells[0].strip("`"): cells[-2:] for cells in rows if cells[0].startswith("`")}
        account = tomllib.loads(self.account)["accounts"]["shop"]
        self.notes = [account["held_more"].strip(), account["held_prompt"]["text"]]

    def config(self, bot, account, url):
        """The account's block and the bot's recipe, for an account of the bot's own name."""
        base = {"path": account.path, "app_id": account.app_id, "token": account.token, "mode": account.mode, "encoding_aes_key": account.key}
        head = f"[accounts.{bot.name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in base.items())
        expect_that(bot.name in self.recipes, f"{PAGE.name} has no recipe for {bot.name}")
        recipe, count = re.subn(r'^url = ".*"', f'url = "{url}"', self.recipes[bot.name], flags=re.M)
        expect(count, 1, f"urls in the recipe of {bot.name}")
        text = self.account.replace("[accounts.shop]\n", head).replace("accounts.shop.", f"accounts.{bot.name}.")
        return text.replace('"bot"', json.dumps(bot.name)) + recipe.replace('{ env = "BOT_SECRET" }', json.dumps(SECRET))


class WeChat:
    """WeChat's side, and the users, of one way: straight to the bot or through the relay."""

    def __init__(self, bot, account, address, path, notes):
        self.bot, self.account, self.address, self.path, self.notes = bot, account, address, path, notes

    async def push(self, clear, user):
        """What the user sees: a text, None, or WeChat's own report of a fault."""
        for _ in range(TRIES):
            try:
                answer = await asyncio.wait_for(self.exchange(push(self.account, clear, openid=user)), TRY)
            except (OSError, EOFError, asyncio.TimeoutError):
                continue
            if answer.status == 200:
                return self.shown(answer.content, user)
        return FAULT

    async def exchange(self, request):
        """One try: HTTP/1.0 on a connection of its own, as WeChat's requests are."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            lines = [f"POST {self.path}?{request.query} HTTP/1.0", "Host: relay.example", "User-Agent: Mozilla/4.0", "Accept: */*",
                     "Content-Type: text/xml", f"Content-Length: {len(request.body)}", "Pragma: no-cache", "Connection: close", "", ""]
            writer.write("\r\n".join(lines).encode() + request.body)
            return Answer(await reader.read())
        finally:
            writer.close()

    def shown(self, body, user):
        if body in (b"", b"success"):
            return None
        try:
            found = xmltodict.parse(body)["xml"]
            if self.account.mode == "secure":
                crypto = self.account.crypto()
                found = xmltodict.parse(crypto.decrypt_message(found, found["MsgSignature"], found["TimeStamp"], found["Nonce"]))["xml"]
            text = found["Content"] or ""
            addressed = (found["ToUserName"], found["FromUserName"], found["MsgType"]) == (user, GH_ID, "text")
        except Exception:  # WeChat shows the same for everything that is no reply
            return FAULT
        return text if addressed and 0 < len(text.encode()) <= LIMIT else FAULT

    async def ask(self, user, seconds, length):
        """How the whole answer came: `try`, `word`, `pieces`; None if it did not. And all that the user saw."""
        text = question(user, seconds, length)
        expected, seen = bare(think(text)[1]), []
        seen.append(await self.push(message("text", openid=user, Content=text), user))
        for words in range(WORDS + 1):
            parts = [part for part in (self.part(text, expected) for text in seen) if part]
            if "".join(parts) == expected:
                return ("pieces" if len(parts) > 1 else "word" if words else "try"), seen
            # After a part people ask for the next at once; otherwise they wait a little.
            await asyncio.sleep(1 if self.part(seen[-1], expected) else 4)
            seen.append(await self.push(message("text", openid=user, Content=self.bot.word), user))
        return None, seen

    def part(self, text, answer):
        """What of a text is part of the answer, without white space; empty if nothing is."""
        text = text or ""
        for note in self.notes:
            text = text.replace(note, "")
        text = bare(NOTE.sub("", text))
        return text if text and text in answer else ""


class Answer:
    def __init__(self, data):
        response = HTTPResponse(Received(data))
        response.begin()
        self.status, self.content = response.status, response.read()


class Received:
    """Bytes, as the socket that HTTPResponse expects."""

    def __init__(self, data):
        self.data = data

    def makefile(self, *_):
        return io.BytesIO(self.data)


def bare(text):
    """Without white space, which may be lost where a text is divided."""
    return re.sub(r"\s", "", text)


class Bots:
    def __init__(self, binary, only, ways):
        self.stand, self.ways = Stand(binary), ways
        self.page = Page()
        self.bots = [bot for bot in bots() if (not only or bot.name in only) and ("relay" in ways or bot.manner or bot.host)]
        self.own = Account("bot", "secure", "/wx")
        self.ends = []

    def install(self, checks):
        """An environment for each real program; without one it is left out, but not in CI."""
        folders = sorted({bot.host for bot in self.bots if bot.host})
        with ThreadPoolExecutor() as pool:
            done = dict(zip(folders, pool.map(installed, folders)))
        for folder, run in done.items():
            said = (run.stdout.strip() or run.stderr.strip()[-600:]) if run else "no pip, or no network"
            if run and run.returncode == 0:
                checks.run(f"{said} is installed", lambda: None)
            elif os.environ.get("CI"):
                checks.run(f"{folder} is installed", lambda s=said: expect_that(False, s))
            else:
                print(f"SKIPPED: {folder}: {said}", flush=True)
            if not run or run.returncode != 0:
                self.bots = [bot for bot in self.bots if bot.host != folder]

    def start(self):
        for bot in self.bots:
            if bot.manner:
                manner = bot.manner(self.own)
                self.ends.append(manner.end)
                bot.ports = {"straight": manner.port, "relay": manner.port}
            elif bot.host:
                bot.ports["relay"] = self.hosted(bot, bot.settings)
                different = bot.straight_settings is not None
                bot.ports["straight"] = self.hosted(bot, bot.straight_settings) if different else bot.ports["relay"]
            else:
                endpoint = Endpoint()
                self.ends.append(endpoint.end)
                settings = {"SECRET": SECRET, "OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": endpoint.key, "OPENAI_MODEL": "stand-in"}
                bot.ports["relay"] = self.stand.program([sys.executable, str(HANDLERS / "openai_handler.py")], **settings)
        self.stand.await_programs()
        self.accounts = {bot.name: Account(bot.name, "secure", f"/wx/{bot.name}", self.own.app_id, self.own.token, self.own.key) for bot in self.bots}
        urls = {bot.name: f"http://127.0.0.1:{bot.ports['relay']}{self.path(bot)}" for bot in self.bots}
        config = "\n".join(self.page.config(bot, self.accounts[bot.name], urls[bot.name]) for bot in self.bots)
        self.relay = self.stand.serve(config) if "relay" in self.ways else None

    def hosted(self, bot, settings):
        environment = {**os.environ, "TOKEN": self.own.token, "ENCODING_AES_KEY": self.own.key, "APP_ID": self.own.app_id, **settings,
                       # Nothing of this goes beyond this machine.
                       "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1",
                       "ASTRBOT_DISABLE_METRICS": "1", "ASTRBOT_ROOT": str(self.stand.path)}
        path, folder = self.stand.path / f"{bot.name}.log", HERE / "bot_hosts" / bot.host
        try:
            with open(path, "ab") as log:
                command = [str(folder / ".venv/bin/python"), str(folder / "host.py")]
                return self.stand.process(bot.name, command, environment=environment, log=log).port()
        except Failure as failure:
            raise Failure(f"{failure}\n{path.read_text(errors='replace')[-1500:]}") from failure

    def path(self, bot):
        return (bot.path if bot.manner or bot.host else "/wechat").format(app_id=self.own.app_id)

    async def ask_all(self):
        """Every bot, both ways, all questions at once. What each found is printed where an answer did not come."""
        asked = []
        for bot in self.bots:
            for way in self.ways:
                if way == "relay":
                    wechat = WeChat(bot, self.accounts[bot.name], self.relay.address, f"/wx/{bot.name}", self.page.notes)
                elif bot.manner or bot.host:
                    own = Account("straight", bot.mode, "/", self.own.app_id, self.own.token, self.own.key)
                    wechat = WeChat(bot, own, ("127.0.0.1", bot.ports[way]), self.path(bot), self.page.notes)
                else:
                    continue
                for seconds in SECONDS:
                    for name, length in LENGTHS.items():
                        asked.append(self.ask(bot, way, wechat, seconds, name, length))
        self.results = await asyncio.gather(*asked)

    async def ask(self, bot, way, wechat, seconds, name, length):
        user = f"o{re.sub('[^a-z]', '', bot.name)}{way}{name}{seconds}"
        try:
            how, seen = await asyncio.wait_for(wechat.ask(user, seconds, length), PATIENCE)
        except asyncio.TimeoutError:
            how, seen = None, [f"not done within {PATIENCE:.0f} s"]
        return bot.name, way, seconds, name, how, seen

    def table(self):
        """Prints what came, and how: at a try (t), by a word (w), in pieces (p), or not (-)."""
        cases = [f"{seconds} s {name}" for seconds in SECONDS for name in LENGTHS]
        print(f"     {'':18}{'':10}" + "".join(f"{case:>12}" for case in cases), flush=True)
        for bot in self.bots:
            for way in self.ways:
                hows = [how for name, by, *_, how, _ in self.results if (name, by) == (bot.name, way)]
                if hows:
                    bot.counts[way] = sum(how is not None for how in hows)
                    print(f"     {bot.name:18}{way:10}" + "".join(f"{how or '-':>12}" for how in hows) + f"{bot.counts[way]:>6}", flush=True)
        for name, way, seconds, length, how, seen in self.results:
            if way == "relay" and how is None:
                texts = [f"{text and text[:60]!r} x {len(list(same))}" for text, same in groupby(seen)]
                print(f"     {name}, {seconds} s, {length}: the user saw {', '.join(texts)}", flush=True)

    def checks(self):
        for bot in self.bots:
            if "relay" in self.ways:
                yield f"{bot.name}: eight of eight answers reach the user through the relay", lambda b=bot: expect(b.counts["relay"], 8, "answers")
            yield f"{bot.name}: the page has the numbers that were found", lambda b=bot: self.written(b)
        if "relay" in self.ways:
            yield "the audit: every delivery is accounted for", self.audited

    def written(self, bot):
        numbers = dict(zip(("straight", "relay"), self.page.found.get(bot.name, ())))
        for way in self.ways:
            least, _, most = numbers.get(way, "").partition("-")
            found = bot.counts.get(way)
            expect_that((found is None) == (not least) and (found is None or int(least) <= found <= int(most or least)),
                        f"{way}: {found}, but {PAGE.name} says {numbers.get(way)}")

    def audited(self):
        found = self.stand.audit()
        expect(found["unaccounted"], 0, "unaccounted")
        return f"{found['events']} events"

    def end(self):
        self.stand.end()
        for end in self.ends:
            end()


def installed(folder):
    """Installs what a folder of bot_hosts pins; the process that said its version, or None."""
    if not shutil.which("bash"):
        return None
    # Every package is pinned, so nothing is resolved; AstrBot asks for a newer Python, which these parts do not need.
    environment = {**os.environ, "PIP_NO_DEPS": "1", "PIP_IGNORE_REQUIRES_PYTHON": "1", "PIP_NO_COMPILE": "1"}
    command = ["bash", str(HERE.parent / "venv.sh"), str(HERE / "bot_hosts" / folder), "host.py", "--version"]
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return None


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("binary", type=Path, help="the wxrelay to test")
    arguments.add_argument("--only", nargs="+", metavar="BOT", help="only these bots")
    arguments.add_argument("--straight", action="store_true", help="only without the relay, which is not started")
    given = arguments.parse_args()
    binary = given.binary.resolve()
    if not binary.is_file():
        sys.exit(f"{binary} is not there; build it with `cargo build --profile dist`")
    checks, all_bots = Checks(), Bots(binary, given.only, ("straight",) if given.straight else ("straight", "relay"))
    try:
        all_bots.install(checks)
        checks.run("the bots and the relay start", all_bots.start)
        if checks.failed == 0:
            asyncio.run(all_bots.ask_all())
            all_bots.table()
            for name, check in all_bots.checks():
                checks.run(name, check)
    finally:
        all_bots.end()
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
