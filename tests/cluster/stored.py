"""What PostgreSQL holds at the end of a run, read by psql."""
import base64

import ledger
from wechat import number_of

EVENTS = "SELECT id, translate(encode(coalesce(clear, body), 'base64'), chr(10), '') FROM wxrelay.event"
DELIVERIES = "SELECT event, name, state FROM wxrelay.delivery JOIN wxrelay.target ON no = target"


class Stored(ledger.Ledger):
    """What a server holds, read by psql."""

    def __init__(self, server):
        self.check = "ok"
        self.numbers, self.texts, self.deliveries = {}, {}, {}
        for line in server.sql(EVENTS).splitlines():
            event, _, text = line.partition("|")
            text = base64.b64decode(text).decode()
            number = number_of(text)
            self.numbers[f"evt_{int(event):016x}"] = number
            self.texts.setdefault(number, []).append(text)
        for line in server.sql(DELIVERIES).splitlines():
            event, name, state = line.split("|")
            self.deliveries[f"evt_{int(event):016x}", name] = int(state)
