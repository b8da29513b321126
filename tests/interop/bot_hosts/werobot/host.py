"""WeRoBot with a language model behind it, as its documentation shows: the handler waits for the answer.

`host.py --version` only says what is installed; the hosts beside it do the same.
"""
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

sys.path.append(str(Path(__file__).resolve().parents[2]))

import werobot  # noqa: E402
from bot_model import think  # noqa: E402


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 256


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def main():
    robot = werobot.WeRoBot(token=os.environ["TOKEN"], enable_session=False)
    robot.config["APP_ID"], robot.config["ENCODING_AES_KEY"] = os.environ["APP_ID"], os.environ["ENCODING_AES_KEY"]

    @robot.text
    def answer(message):
        seconds, text = think(message.content)
        time.sleep(seconds)
        return text

    server = make_server("127.0.0.1", 0, robot.wsgi, Server, Quiet)
    print(json.dumps({"listening": server.server_port}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        print("WeRoBot", version("werobot"))
    else:
        main()
