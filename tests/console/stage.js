// A relay with targets that break on command, and people who look at it.
'use strict'

const { launch, Visitor } = require('./browser.js')
const { OPERATOR, Relay, VIEWER } = require('./relay.js')
const { Target } = require('./targets.js')
const { until } = require('./checks.js')
const { Account } = require('./wechat.js')

/** One account, whose scans go to `login` and everything else to `crm`; `legacy` gets texts too. */
class Stage {
  constructor(binary) {
    this.binary = binary
    this.visitors = []
    this.targets = {}
  }

  async start({ users = true, hosts = '', tls, names = ['crm', 'legacy'] } = {}) {
    this.relay = new Relay(this.binary)
    const account = new Account('shop')
    let text = account.toml()
    text += `[[accounts.shop.routes]]\nmatch = { msg_type = "text" }\nto = ${JSON.stringify(names)}\n`
    text += `[[accounts.shop.routes]]\notherwise = true\nto = ["${names[0]}"]\n`
    for (const name of names) {
      this.targets[name] = await new Target(name).listen(name === 'legacy' ? tls?.(this.relay.folder) : undefined)
      text += `[targets.${name}]\nurl = "${this.targets[name].url}"\nretry = ["100ms", "200ms"]\n`
    }
    this.browser = await launch(hosts)
    await this.relay.serve(text, { users, account })
    return this
  }

  /** Somebody who has logged in; `role` is "operator", "viewer" or null for somebody who has not. */
  async visitor(role = 'operator', options = {}) {
    const visitor = await Visitor.open(this.browser, this.relay, options)
    this.visitors.push(visitor)
    if (role) await visitor.login(role === 'viewer' ? VIEWER : OPERATOR)
    return visitor
  }

  /** `count` events become dead letters of crm, as 410 does at once. */
  async deadLetters(count, text = 'this handler has moved', begin = 0) {
    // What waits yet would die with them.
    await until('delivery of what was before', async () => (await this.relay.target('crm'))?.pending === 0)
    const { dead } = await this.relay.target('crm')
    this.targets.crm.breaks(410, text)
    await this.relay.events(count, undefined, begin)
    await until(`${count} dead letters`, async () => (await this.relay.target('crm')).dead === dead + count)
  }

  async end() {
    for (const visitor of this.visitors) await visitor.close().catch(() => {})
    await this.browser?.close()
    await this.relay?.end()
    Object.values(this.targets).forEach((target) => target.end())
  }
}

/** Runs `body` with a stage that is ended whatever comes. */
async function withStage(binary, options, body) {
  const stage = new Stage(binary)
  try {
    await stage.start(options)
    return await body(stage)
  } finally {
    await stage.end()
  }
}

module.exports = { Stage, withStage }
