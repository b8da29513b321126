// The relay under test, in a folder of its own: its configuration, start, API and end.
'use strict'

const { spawn, spawnSync } = require('node:child_process')
const fs = require('node:fs')
const http = require('node:http')
const os = require('node:os')
const path = require('node:path')
const readline = require('node:readline')
const { Failure, WAIT, expect, until } = require('./checks.js')
const { message, post, seal } = require('./wechat.js')

const OPERATOR = 'the-operators-token-of-the-test-0123456789'
const VIEWER = 'the-viewers-token-of-the-test-01234567890'
const USERS = `[admin.users.li]\ntoken = "${OPERATOR}"\nrole = "operator"\n[admin.users.wang]\ntoken = "${VIEWER}"\nrole = "viewer"\n`

class Relay {
  constructor(binary) {
    this.binary = binary
    this.folder = fs.mkdtempSync(path.join(os.tmpdir(), 'wxrelay-console-'))
    this.lines = []
  }

  /** Starts it with these accounts and targets; without `users` nobody has to log in. */
  async serve(text, { users = false, account } = {}) {
    this.account = account
    this.config = path.join(this.folder, 'config.toml')
    const store = JSON.stringify(path.join(this.folder, 'store'))
    fs.writeFileSync(this.config, `[server]\nlisten = ["127.0.0.1:0"]\n[admin]\nlisten = "127.0.0.1:0"\n${users ? USERS : ''}` +
      `[queue]\npath = ${store}\n${text}`)
    this.token = users ? OPERATOR : null
    this.child = spawn(this.binary, ['serve', '-c', this.config], { stdio: ['ignore', 'ignore', 'pipe'] })
    this.ended = new Promise((resolve) => this.child.on('exit', resolve))
    readline.createInterface({ input: this.child.stderr }).on('line', (line) => {
      try {
        this.lines.push(JSON.parse(line))
      } catch {
        this.lines.push({ message: line })
      }
    })
    this.push = (await this.line('the push listener', (line) => line.message === 'listening' && line.listener === 'push')).address
    this.admin = (await this.line('the admin listener', (line) => line.message === 'listening' && line.listener === 'admin')).address
    await this.line('`ready`', (line) => line.message === 'ready')
    this.origin = `http://${this.admin}`
    return this
  }

  line(what, predicate) {
    return until(`line of ${what}`, () => {
      const found = this.lines.find(predicate)
      if (!found && this.child.exitCode !== null) throw new Failure(JSON.stringify(this.lines.slice(-4)))
      return found
    })
  }

  /** One request to the admin listener with exactly these headers: status, headers and text. */
  ask(method, target, { headers = {}, body, token = this.token } = {}) {
    const [host, port] = this.admin.split(':')
    const bearer = token ? { authorization: `Bearer ${token}` } : {}
    return new Promise((resolve, reject) => {
      const request = http.request({ host, port, path: target, method, headers: { ...bearer, ...headers }, timeout: WAIT }, (response) => {
        let text = ''
        response.setEncoding('utf8').on('data', (part) => (text += part))
        response.on('end', () => resolve({ status: response.statusCode, headers: response.headers, text }))
      })
      request.on('timeout', () => request.destroy(new Failure(`${method} ${target}: no answer`)))
      request.on('error', reject)
      request.end(body)
    })
  }

  async get(target) {
    const answer = await this.ask('GET', target)
    expect(answer.status, 200, `GET ${target}: ${answer.text.slice(0, 300)}`)
    return JSON.parse(answer.text)
  }

  /** Pushes one event and wants it answered 200; gives what the push said. */
  async event(elements, { openid = 'oPerson1', kind = 'event', created } = {}) {
    const answer = await post(this.push, seal(this.account, message(kind, openid, elements, created), openid))
    expect(answer.status, 200, `answer to ${JSON.stringify(elements).slice(0, 200)}`)
    return answer
  }

  /** Pushes `count` events of as many users, 32 at a time. */
  async events(count, elements = (index) => ({ Event: 'SCAN', EventKey: `login_${index}`, Ticket: 't' }), begin = 0) {
    let next = begin
    const send = async () => {
      for (let index = next++; index < begin + count; index = next++) await this.event(elements(index), { openid: `oPerson${index}` })
    }
    await Promise.all(Array.from({ length: 32 }, send))
  }

  /** The counts of a target, as the API has them. */
  async target(name) {
    return (await this.get('/api/targets')).targets.find((one) => one.name === name)
  }

  /** The ledger, counted by the command: it must add up. */
  audit() {
    const done = spawnSync(this.binary, ['audit', '--json', '-c', this.config], { encoding: 'utf8', timeout: 60_000 })
    expect(done.status, 0, `audit: ${done.stdout}${done.stderr}`)
    return JSON.parse(done.stdout)
  }

  async end() {
    if (this.child && this.child.exitCode === null) {
      this.child.kill('SIGTERM')
      const killer = setTimeout(() => this.child.kill('SIGKILL'), WAIT)
      await this.ended
      clearTimeout(killer)
    }
    fs.rmSync(this.folder, { recursive: true, force: true })
  }
}

module.exports = { OPERATOR, Relay, VIEWER }
