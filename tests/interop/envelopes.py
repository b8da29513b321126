"""Envelopes, both ways: wechatpy and wechat-crypto encrypt what the relay decrypts, and decrypt what the relay encrypts."""
import time

import xmltodict

from harness import WELCOME
from rig import expect, expect_that
from wechat import GH_ID, Account, encoding_aes_key, message, open_by_wechatpy, push, seal_by_wechatpy, signature


def checks(harness):
    yield "wechatpy and wechat-crypto open each other's envelopes", lambda: peers_agree(harness)
    for account in harness.accounts:
        yield f"{account.mode}: a URL verification signed by wechatpy gets its echostr", lambda a=account: verification(harness, a)
    for account in (harness.secure, harness.compatible):
        for name, seal in (("wechatpy", seal_by_wechatpy), ("wechat-crypto", harness.seal_by_wechat_crypto)):
            yield (f"{account.mode}: sealed by {name}, the fixed reply opens in wechatpy and in wechat-crypto",
                   lambda a=account, s=seal: fixed_reply(harness, a, s))
    yield "plaintext: signed by wechatpy, the fixed reply comes in clear", lambda: clear_reply(harness)
    for name, seal in (("wechatpy", seal_by_wechatpy), ("wechat-crypto", harness.seal_by_wechat_crypto)):
        yield f"pads 1 to 32 of {name} are opened, pads 1 to 32 of the relay's replies open", lambda s=seal: every_pad(harness, s)
    yield "a text of 1800 bytes and one of 100000 are opened", lambda: long_texts(harness)
    yield "refused with 403: encrypted for another AppID, by another key, signed with another token", lambda: forged(harness)
    yield "refused with 403: a clear message on the secure account, a timestamp of an hour ago", lambda: downgraded_or_stale(harness)
    yield "refused with 400: an Encrypt cut short", lambda: cut_short(harness)


def peers_agree(harness):
    for length in range(64):
        clear = message("text", Content="长" * length + "x" * length)
        timestamp, nonce = str(int(time.time())), "1792106704"
        sealed = dict(zip(("Encrypt", "MsgSignature"), seal_by_wechatpy(harness.secure, clear, timestamp, nonce)), TimeStamp=timestamp, Nonce=nonce)
        expect(harness.open_by_wechat_crypto(harness.secure, sealed), clear, "wechat-crypto opens wechatpy's")
        encrypt, msg_signature = harness.seal_by_wechat_crypto(harness.secure, clear, timestamp, nonce)
        opened = harness.secure.crypto().decrypt_message({"Encrypt": encrypt}, msg_signature, timestamp, nonce)
        expect(opened, clear, "wechatpy opens wechat-crypto's")


def verification(harness, account):
    timestamp, nonce, echostr = str(int(time.time())), "1514711492", "4375120948345356249"
    signed = signature(account.token, timestamp, nonce)
    answer = harness.relay.get(account.path, signature=signed, echostr=echostr, timestamp=timestamp, nonce=nonce)
    expect((answer.status, answer.body), (200, echostr.encode()), "answer")
    expect(answer.headers["content-type"], "text/plain; charset=utf-8", "Content-Type")
    wrong = harness.relay.get(account.path, signature="0" * 40, echostr=echostr, timestamp=timestamp, nonce=nonce)
    expect_that(wrong.status == 403 and echostr.encode() not in wrong.body, f"a wrong signature got {wrong.status} {wrong.body}")


def fixed_reply(harness, account, seal):
    clear = message("event", Event="subscribe", EventKey="qrscene_login_7", Ticket="TICKET", openid=f"oFIXED{account.mode}{seal.__name__}")
    answer = harness.send(account, clear, seal=seal)
    sealed, reply, text = open_by_wechatpy(account, answer)
    expect(harness.open_by_wechat_crypto(account, sealed), text, "wechat-crypto opens what wechatpy opens")
    expect_fixed(reply, f"oFIXED{account.mode}{seal.__name__}")


def clear_reply(harness):
    answer = harness.send(harness.plaintext, message("event", Event="subscribe", EventKey="", openid="oFIXEDclear"))
    expect((answer.status, answer.headers["content-type"]), (200, "text/xml; charset=utf-8"), "answer")
    expect_fixed(xmltodict.parse(answer.body)["xml"], "oFIXEDclear")


def expect_fixed(reply, openid):
    expect_that(abs(int(reply.pop("CreateTime")) - time.time()) < 60, "CreateTime is not now, in seconds")
    expect(dict(reply), {"ToUserName": openid, "FromUserName": GH_ID, "MsgType": "text", "Content": WELCOME}, "reply")


def every_pad(harness, seal):
    pushed, replied = set(), set()
    for length in range(1, 33):
        said = "y" * length
        clear = message("text", Content=f"echo {length % 10} {said}")
        answer = harness.send(harness.secure, clear, seal=seal)
        sealed, reply, text = open_by_wechatpy(harness.secure, answer)
        expect(reply["Content"], said, f"reply of length {length}")
        expect(harness.open_by_wechat_crypto(harness.secure, sealed), text, "wechat-crypto opens what wechatpy opens")
        for pads, opened in ((pushed, clear), (replied, text)):
            pads.add(32 - (20 + len(opened.encode()) + len(harness.secure.app_id)) % 32)
    expect(sorted(pushed), list(range(1, 33)), "pads of the pushes")
    expect(sorted(replied), list(range(1, 33)), "pads of the replies")


def long_texts(harness):
    for length in (600, 33_000):
        answer = harness.send(harness.secure, message("text", Content="长" * length))
        expect((answer.status, answer.body), (200, b"success"), f"{3 * length} bytes of text")


def forged(harness):
    there = harness.secure
    for name, account in {
        "another AppID": Account("forged", "secure", there.path, "wx0000000000000000", there.token, there.key),
        "another key": Account("forged", "secure", there.path, there.app_id, there.token, encoding_aes_key()),
        "another token": Account("forged", "secure", there.path, there.app_id, "x" * 32, there.key),
    }.items():
        expect(harness.send(account, message("text", Content="forged")).status, 403, name)


def downgraded_or_stale(harness):
    plain = Account("forged", "plaintext", harness.secure.path, harness.secure.app_id, harness.secure.token, harness.secure.key)
    expect(harness.send(plain, message("text", Content="forged")).status, 403, "a clear message")
    for account in harness.accounts:
        late = push(account, message("text", Content="forged"), timestamp=str(int(time.time()) - 3600))
        expect(harness.relay.post(account.path, late).status, 403, f"an hour ago, {account.mode}")


def cut_short(harness):
    def seal(account, clear, timestamp, nonce):
        encrypt, _ = seal_by_wechatpy(account, clear, timestamp, nonce)
        return encrypt[:-24], signature(account.token, timestamp, nonce, encrypt[:-24])

    expect(harness.send(harness.secure, message("text", Content="forged"), seal=seal).status, 400, "an Encrypt of no multiple of 32")
