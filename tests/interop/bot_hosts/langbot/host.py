"""LangBot's client of WeChat's official accounts, in its two modes, with a language model instead of LangBot's pipeline.

The rest of LangBot needs a database, its web panel and plugins, and decides nothing about the answers to WeChat.
"""
import asyncio
import json
import os
import socket
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bot_model import think  # noqa: E402
from hypercorn.asyncio import serve  # noqa: E402
from hypercorn.config import Config  # noqa: E402
from langbot.libs.official_account_api.api import OAClient, OAClientForLongerResponse  # noqa: E402


class Logger:
    async def error(self, text):
        print(text, file=sys.stderr, flush=True)


def client():
    settings = {"token": os.environ["TOKEN"], "EncodingAESKey": os.environ["ENCODING_AES_KEY"], "AppID": os.environ["APP_ID"],
                "Appsecret": "-", "logger": Logger()}
    if os.environ["MODE"] == "passive":
        return OAClientForLongerResponse(LoadingMessage="AI正在思考中，请发送任意内容获取回复。", **settings)
    return OAClient(**settings)


async def main():
    bot, tasks = client(), set()

    async def answer(event):
        seconds, text = think(event.message)
        await asyncio.sleep(seconds)
        # As LangBot's adapter does (pkg/platform/sources/officialaccount.py).
        to = (event.user_id, event.message_id) if isinstance(bot, OAClientForLongerResponse) else (event.message_id,)
        await bot.set_message(*to, text)

    @bot.on_message("text")
    async def begin(event):
        task = asyncio.create_task(answer(event))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(json.dumps({"listening": listener.getsockname()[1]}), flush=True)
    settings = Config()
    settings.bind = [f"fd://{listener.fileno()}"]
    await serve(bot.app, settings)


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print("LangBot", version("langbot"))
    else:
        asyncio.run(main())
