"""A NoneBot with the adapter nonebot-adapter-wxmp: one matcher, which waits for the language model and sends its answer."""
import asyncio
import json
import os
import socket
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import nonebot  # noqa: E402
import uvicorn  # noqa: E402
from bot_model import think  # noqa: E402
from nonebot.adapters.wxmp import Adapter, Bot, Event  # noqa: E402


def main():
    account = {"appid": os.environ["APP_ID"], "token": os.environ["TOKEN"], "secret": "-", "type": "official"}
    settings = {"wxmp_official_timeout": float(os.environ["TIMEOUT"])} if "TIMEOUT" in os.environ else {}
    nonebot.init(driver="~fastapi+~httpx", log_level="ERROR", wxmp_bots=[account], **settings)
    nonebot.get_driver().register_adapter(Adapter)
    matcher = nonebot.on_message()

    @matcher.handle()
    async def answer(bot: Bot, event: Event):
        seconds, text = think(event.get_plaintext())
        await asyncio.sleep(seconds)
        await bot.send(event, text)

    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(json.dumps({"listening": listener.getsockname()[1]}), flush=True)
    uvicorn.Server(uvicorn.Config(nonebot.get_asgi(), log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print("nonebot-adapter-wxmp", version("nonebot-adapter-wxmp"), "on nonebot2", version("nonebot2"))
    else:
        main()
