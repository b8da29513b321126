// The official npm packages `standardwebhooks` and `cloudevents` as judges of one delivery. One JSON request a line on
// stdin, one JSON answer a line on stdout; ends when stdin does.
//   {"op":"verify","secret","headers","body"} -> {"verified"}; {"refused"} if the package refuses it
//   {"op":"event","headers","body"} -> the attributes and data that the package reads
// It holds no checks of its own: webhooks.py compares.
'use strict'

const readline = require('node:readline')
const { HTTP } = require('cloudevents')
const { Webhook, WebhookVerificationError } = require('standardwebhooks')

function answer({ op, secret, headers, body }) {
  if (op === 'event') {
    const event = HTTP.toEvent({ headers, body })
    return { valid: event.validate(), ...event.toJSON() }
  }
  try {
    return { verified: new Webhook(secret).verify(body, headers) }
  } catch (error) {
    if (error instanceof WebhookVerificationError) return { refused: error.message }
    throw error
  }
}

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  let answered
  try {
    answered = answer(JSON.parse(line))
  } catch (error) {
    answered = { error: String(error.message) }
  }
  process.stdout.write(JSON.stringify(answered) + '\n')
})
