// The npm package wechat-crypto as a second opinion on envelopes. One JSON request a line on stdin,
// one JSON answer a line on stdout; ends when stdin does.
//   {"op":"seal","token","key","id","text","timestamp","nonce"} -> {"encrypt","signature"}
//   {"op":"open","token","key","id","encrypt","timestamp","nonce"} -> {"message","id","signature"}
// It holds no checks of its own: run.py compares.
'use strict'

const readline = require('node:readline')
const WXBizMsgCrypt = require('wechat-crypto')

function answer(request) {
  const crypt = new WXBizMsgCrypt(request.token, request.key, request.id)
  if (request.op === 'seal') {
    const encrypt = crypt.encrypt(request.text)
    return { encrypt, signature: crypt.getSignature(request.timestamp, request.nonce, encrypt) }
  }
  const { message, id } = crypt.decrypt(request.encrypt)
  return { message, id, signature: crypt.getSignature(request.timestamp, request.nonce, request.encrypt) }
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
