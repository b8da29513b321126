// A handler for `format = "cloudevents"` on Express: npm install express cloudevents standardwebhooks
const express = require('express')
const { HTTP } = require('cloudevents')
const { Webhook } = require('standardwebhooks')

const { SECRET, PORT = 9000 } = process.env
const webhook = new Webhook(SECRET) // whsec_..., the target's `secret`
const seen = new Set() // in earnest: a unique key in your database

const app = express()
app.post('/wechat', express.text({ type: '*/*' }), (req, res) => {
  try { webhook.verify(req.body, req.headers) } catch { return res.status(401).end() }
  const event = HTTP.toEvent({ headers: req.headers, body: req.body })
  if (seen.has(event.id)) return res.status(204).end() // delivered before: say thank you, do nothing
  seen.add(event.id)
  const awaited = Number(req.headers['wxrelay-deadline-ms'] ?? 0) // absent: nobody waits for a reply
  if (event.data.MsgType === 'text' && awaited > 500) {
    return res.json({ reply: { msg_type: 'text', content: `Express: ${event.data.Content}` } })
  }
  res.status(204).end() // no reply
})
app.listen(Number(PORT), '127.0.0.1')
