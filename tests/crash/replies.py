"""kill -9 between a handler's answer and its user: `replies.py --kills N --seed S [--binary PATH]`.

A bot that answers late, and users who ask it and then send "1" until they have the answer. In each life of the relay
some users ask, and it is killed at a random moment: while the bot thinks, after its answer, while WeChat waits for the
prompt, while a message picks the reply up. WeChat's tries are made again as WeChat makes them. At the end every user has
got the answer to every question, none has got one twice, and the ledger of replies adds up.
"""
import argparse
import asyncio
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import wechat
from relay import Relay, embedded
from rig import Checks, expect, expect_that, parsed
from targets import Connection, Target

CONFIG = """\
[server]
listen = ["127.0.0.1:0"]
[admin]
listen = "127.0.0.1:0"
[queue]
{queue}
[log]
level = "warn,wxrelay::app=info"
[accounts.shop]
path = "{path}"
app_id = "{app_id}"
token = "{token}"
encoding_aes_key = "{key}"
mode = "secure"
reply_budget = "300ms"
held_replies = "1h"
held_prompt = {{ text = "one moment" }}
held_more = " (more)"
[[accounts.shop.routes]]
otherwise = true
to = ["crm", "bot"]
reply = "bot"
[targets.crm]
url = "http://127.0.0.1:{crm}/"
format = "json"
retry = ["50ms"]
[targets.bot]
url = "http://127.0.0.1:{bot}/"
format = "json"
retry = ["50ms"]
"""
USERS = 4  # that ask in each life
PATIENCE = 30.0
LIMIT = 10.0
CONTENT = re.compile(r"<Content><!\[CDATA\[(.*?)\]\]></Content>", re.S)


def text_of(user, content, number, second):
    return (f"<xml><ToUserName><![CDATA[{wechat.GH_ID}]]></ToUserName>\n<FromUserName><![CDATA[{user}]]></FromUserName>\n"
            f"<CreateTime>{second}</CreateTime>\n<MsgType><![CDATA[text]]></MsgType>\n"
            f"<Content><![CDATA[{content}]]></Content>\n<MsgId>{number}</MsgId>\n</xml>")


class Bot(Connection):
    """Answers a question with its answer, after a while; a bare `1` was no question."""

    def take(self, headers, body):
        told = json.loads(body)
        content = told["message"]["Content"]
        if not content.startswith("question"):
            self.target.contradict(f"{told['id']}: the bot was asked {content!r}")
        answer = "answer to " + content + (" " + "so long" * 500 if content.endswith("7") else "")
        late = self.target.rng.uniform(0.0, 0.9)
        asyncio.get_running_loop().call_later(late, self.reply, answer)

    def reply(self, answer):
        if self.transport.is_closing():
            return
        body = json.dumps({"reply": {"msg_type": "text", "content": answer}}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


class Other(Connection):
    """Takes everything."""

    def take(self, headers, body):
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


class Run:
    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.rng = random.Random(arguments.seed)
        self.config = folder / "config.toml"
        self.address = None
        self.number = 6074130599188000000
        self.got = {}  # question -> answers that its user read, each by another message
        self.bot = Target("bot", lambda _: None)
        self.bot.rng = random.Random(self.rng.random())
        self.crm = Target("crm", lambda _: None)

    async def go(self, checks):
        await self.bot.start(connection=Bot)
        await self.crm.start(connection=Other)
        self.config.write_text(CONFIG.format(
            queue=embedded(self.folder / "store"), path=wechat.PATH, app_id=wechat.APP_ID, token=wechat.TOKEN,
            key=wechat.KEY, bot=self.bot.port, crm=self.crm.port))
        asking = []
        relay = await self.start()
        for life in range(self.arguments.kills):
            asking += [asyncio.create_task(self.user(f"o{life:05d}{number}")) for number in range(USERS)]
            await asyncio.sleep(self.rng.uniform(0.0, 1.6))
            self.address = None
            expect(await relay.kill(), -9, "exit code")
            relay = await self.start()
        await asyncio.wait_for(asyncio.gather(*asking), PATIENCE)
        await asyncio.sleep(0.5)
        expect(await relay.stop(), 0, "exit code of SIGTERM")
        self.check(checks)

    async def start(self):
        relay = Relay(self.arguments.binary, self.config)
        await relay.start()
        self.address = await relay.ready()
        return relay

    async def user(self, user):
        """Asks a question, and then for its answer, until it is there."""
        question = f"question of {user}"
        pieces = self.got.setdefault(question, [])
        content = question
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            reply = await self.say(user, content)
            content = "1"
            if reply is None or reply == "one moment":
                await asyncio.sleep(0.1)
                continue
            pieces.append(reply)
            if not reply.endswith(" (more)"):
                return

    async def say(self, user, content):
        """One message, in three tries as WeChat makes them; what the user reads."""
        self.number += 1
        clear = text_of(user, content, self.number, int(time.time()))
        for _ in range(3):
            while self.address is None:
                await asyncio.sleep(0.02)
            body = await exchange(self.address, clear)
            if body is not None:
                return None if body in (b"success", b"") else CONTENT.search(wechat.unseal(body)).group(1)
            await asyncio.sleep(0.1)
        return None

    def check(self, checks):
        silent = [question for question, pieces in self.got.items() if not pieces]
        checks.run(f"{len(self.got)} questions: every user has an answer", lambda: expect(silent, [], "without one"))

        def whole():
            for question, pieces in self.got.items():
                text = "".join(piece.removesuffix(" (more)") for piece in pieces)
                expect_that(text.startswith("answer to " + question), f"{question}: {text[:60]!r}")
                expect(text.count("answer to"), 1, f"answers to {question}")
                if question.endswith("7"):
                    expect(text.count("so long"), 500, f"parts of the long answer to {question}")
        checks.run("each is whole, and came once", whole)
        checks.run("what picks a reply up is no question", lambda: expect(self.bot.wrong, [], "what the bot was asked"))
        audit = subprocess.run([self.arguments.binary, "audit", "--json", "-c", self.config], capture_output=True, text=True)
        checks.run("the audit is clean", lambda: expect(audit.returncode, 0, "exit code: " + audit.stdout + audit.stderr))
        replies = json.loads(audit.stdout)["replies"]

        def ledger():
            parts = ("sent", "held", "picked_up", "superseded", "dropped", "expired")
            expect(replies["given"], sum(replies[part] for part in parts), f"given, of {replies}")
            expect_that(replies["picked_up"] > 0, f"some are picked up: {replies}")
        checks.run(f"the ledger of replies adds up: {replies}", ledger)


async def exchange(address, clear):
    """One try; the body of a 200 that has arrived whole, else None."""
    writer = None
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(*address), LIMIT)
        writer.write(wechat.request(clear))
        answer = await asyncio.wait_for(reader.read(), LIMIT)
        head, _, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        is_whole = head.startswith(b"HTTP/") and length is not None and len(body) == int(length.group(1))
        return body if is_whole and int(head.split()[1]) == 200 else None
    except (OSError, ValueError, IndexError, asyncio.TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.transport.abort()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parsed(parser)
    checks = Checks()
    folder = Path(tempfile.mkdtemp(prefix="wxrelay-replies-"))
    limit = 90 + 6 * arguments.kills
    checks.run(f"the run ends within {limit} s", lambda: asyncio.run(asyncio.wait_for(Run(arguments, folder).go(checks), limit)))
    if checks.failed:
        print(f"the store is kept in {folder}")
    else:
        shutil.rmtree(folder)
    return checks.close()


if __name__ == "__main__":
    sys.exit(main())
