"""A backend on wechatpy and Flask, as for WeChat itself: pip install wechatpy[cryptography] flask"""
import os

from flask import Flask, abort, request
from wechatpy import create_reply, parse_message
from wechatpy.crypto import WeChatCrypto
from wechatpy.exceptions import InvalidAppIdException, InvalidSignatureException
from wechatpy.utils import check_signature

TOKEN, KEY, APP_ID = os.environ["TOKEN"], os.environ.get("ENCODING_AES_KEY"), os.environ.get("APP_ID")
app = Flask(__name__)


@app.route("/wx", methods=["GET", "POST"])
def wx():
    query, crypto = request.args, WeChatCrypto(TOKEN, KEY, APP_ID) if KEY else None
    try:
        check_signature(TOKEN, query["signature"], query["timestamp"], query["nonce"])
        if request.method == "GET":
            return query["echostr"]
        text = request.data
        if crypto:
            text = crypto.decrypt_message(text, query["msg_signature"], query["timestamp"], query["nonce"])
    except (InvalidSignatureException, InvalidAppIdException):
        abort(403)
    message = parse_message(text)
    if message.type != "text":
        return "success"
    reply = create_reply(f"wechatpy: {message.content}", message).render()
    return crypto.encrypt_message(reply, query["nonce"], query["timestamp"]) if crypto else reply


app.run(port=int(os.environ.get("PORT", "9100")))
