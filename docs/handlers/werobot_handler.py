"""A robot on WeRoBot, as for WeChat itself: pip install werobot cryptography"""
import os

import werobot

robot = werobot.WeRoBot(token=os.environ["TOKEN"])
robot.config["APP_ID"] = os.environ.get("APP_ID")
robot.config["ENCODING_AES_KEY"] = os.environ.get("ENCODING_AES_KEY")
robot.config["SESSION_STORAGE"] = False
robot.config["PORT"] = int(os.environ.get("PORT", "9100"))


@robot.text
def text(message):
    return f"WeRoBot: {message.content}"


@robot.subscribe
def subscribe(message):
    return None  # the relay answers `success`


robot.run()
