"""A handler for `format = "json"` on FastAPI: pip install fastapi uvicorn standardwebhooks"""
import os

import uvicorn
from fastapi import FastAPI, Request, Response
from standardwebhooks import Webhook, WebhookVerificationError

webhook = Webhook(os.environ["SECRET"])  # whsec_..., the target's `secret`
seen = set()  # in earnest: a unique key in your database
app = FastAPI()


@app.post("/wechat")
async def receive(request: Request):
    try:
        event = webhook.verify(await request.body(), dict(request.headers))
    except WebhookVerificationError:
        return Response(status_code=401)
    if event["id"] in seen:  # delivered before: say thank you, do nothing
        return Response(status_code=204)
    seen.add(event["id"])
    awaited = int(request.headers.get("wxrelay-deadline-ms", "0"))  # absent: nobody waits for a reply
    if event["msg_type"] == "text" and awaited > 500:
        return {"reply": {"msg_type": "text", "content": f"FastAPI: {event['message']['Content']}"}}
    return Response(status_code=204)  # no reply


uvicorn.run(app, port=int(os.environ.get("PORT", "9000")), log_level="warning")
