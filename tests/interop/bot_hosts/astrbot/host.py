"""AstrBot's adapter for WeChat's official accounts, with a language model instead of AstrBot's pipeline.

Of AstrBot there is what answers WeChat: the adapter, its events, the messages and the server (KEPT), as they are in the
package. What they import beside that opens a database and loads every model provider; empty classes are in its place.
"""
import asyncio
import json
import logging
import os
import re
import socket
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bot_model import think  # noqa: E402
from hypercorn.asyncio import serve  # noqa: E402
from hypercorn.config import Config  # noqa: E402

KEPT = re.compile(r"astrbot(\.api\.(event|platform|message_components)|\.core\.(message|platform)\b.*)?")


class Empty:
    """Takes every call and has every attribute."""

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return Empty()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Empty()

    @staticmethod
    async def upload(**_):
        """AstrBot's count of its users: nothing is sent."""


class EmptyModules:
    """Finds the modules of AstrBot that are left out, and makes an empty one; packages stay where they are."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] != "astrbot" or KEPT.fullmatch(name):
            return None
        spec = ModuleSpec(name, self, is_package=True)
        spec.submodule_search_locations = [f"{folder}/{name.split('.')[-1]}" for folder in path or []]
        return spec

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = attribute
        return module

    def exec_module(self, module):
        pass


def attribute(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return logging.getLogger("astrbot") if name == "logger" else Empty


sys.meta_path.insert(0, EmptyModules())

from astrbot.core.message.message_event_result import MessageChain  # noqa: E402
from astrbot.core.platform.sources.weixin_official_account.weixin_offacc_adapter import (  # noqa: E402
    WeixinOfficialAccountPlatformAdapter,
)


async def main():
    queue, tasks = asyncio.Queue(), set()
    settings = {"id": "weixin", "appid": os.environ["APP_ID"], "secret": "-", "token": os.environ["TOKEN"], "port": 0,
                "encoding_aes_key": os.environ["ENCODING_AES_KEY"]}
    bot = WeixinOfficialAccountPlatformAdapter(settings, {}, queue)

    async def answer(event):
        seconds, text = think(event.message_str)
        await asyncio.sleep(seconds)
        try:
            await event.send(MessageChain().message(text))
        except Exception:
            logging.exception("the answer was not sent")

    async def work():
        while True:
            task = asyncio.create_task(answer(await queue.get()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    worker = asyncio.create_task(work())
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(json.dumps({"listening": listener.getsockname()[1]}), flush=True)
    server = Config()
    server.bind = [f"fd://{listener.fileno()}"]
    await serve(bot.server.server.app, server)
    worker.cancel()


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print("AstrBot", version("astrbot"))
    else:
        asyncio.run(main())
