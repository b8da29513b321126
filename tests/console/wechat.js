// WeChat's side, sealed by the npm package wechat-crypto: it signs, encrypts and posts in secure mode.
'use strict'

const { createHash, randomBytes } = require('node:crypto')
const http = require('node:http')
const WXBizMsgCrypt = require('wechat-crypto')

const GH_ID = 'gh_7f083739789a'
const agent = new http.Agent({ keepAlive: true, maxSockets: 32 })
let number = 6_074_130_599_188_426n

/** The settings of an account in WeChat's console, and the path of its pushes. */
class Account {
  constructor(name, appId = 'wx2c2769f8efd9abc2') {
    this.name = name
    this.path = `/wx/${name}`
    this.appId = appId
    this.token = randomBytes(16).toString('hex')
    // The last sign holds two bits only: A keeps the decoders that are strict about it quiet.
    this.key = randomBytes(40).toString('base64').replace(/[+/=]/g, 'x').slice(0, 42) + 'A'
    this.crypt = new WXBizMsgCrypt(this.token, this.key, appId)
  }

  toml() {
    return `[accounts.${this.name}]\npath = "${this.path}"\napp_id = "${this.appId}"\nmode = "secure"\n` +
      `token = "${this.token}"\nencoding_aes_key = "${this.key}"\n`
  }
}

/** An element as WeChat writes it; a text that would end the section is split, as XML wants it. */
function element(name, value) {
  if (typeof value === 'number') return `<${name}>${value}</${name}>`
  return `<${name}><![CDATA[${value.replaceAll(']]>', ']]]]><![CDATA[>')}]]></${name}>`
}

/** A message as WeChat writes it. */
function message(kind, openid, elements, created = Math.floor(Date.now() / 1000)) {
  const head = { ToUserName: GH_ID, FromUserName: openid, CreateTime: created, MsgType: kind }
  const tail = kind === 'event' ? {} : { MsgId: String(number++) }
  const lines = Object.entries({ ...head, ...elements, ...tail }).map(([name, value]) => element(name, value))
  return `<xml>${lines.join('\n')}\n</xml>`
}

/** The path and the body of the push that carries the message `clear`. */
function seal(account, clear, openid) {
  const timestamp = String(Math.floor(Date.now() / 1000))
  const nonce = String(number++)
  const encrypt = account.crypt.encrypt(clear)
  const signature = createHash('sha1').update([account.token, timestamp, nonce].sort().join('')).digest('hex')
  const query = new URLSearchParams({
    signature, timestamp, nonce, openid, encrypt_type: 'aes',
    msg_signature: account.crypt.getSignature(timestamp, nonce, encrypt),
  })
  return { path: `${account.path}?${query}`, body: `<xml>${element('ToUserName', GH_ID)}${element('Encrypt', encrypt)}</xml>` }
}

/** Posts a sealed push to the listener: the status, and how long the answer took in ms. */
function post(listener, { path, body }) {
  const [host, port] = listener.split(':')
  return new Promise((resolve, reject) => {
    const begun = performance.now()
    const headers = { 'content-type': 'text/xml', 'content-length': Buffer.byteLength(body) }
    const request = http.request({ host, port, path, method: 'POST', headers, agent }, (response) => {
      response.resume()
      response.on('end', () => resolve({ status: response.statusCode, took: performance.now() - begun }))
    })
    request.on('error', reject)
    request.end(body)
  })
}

module.exports = { Account, message, post, seal }
