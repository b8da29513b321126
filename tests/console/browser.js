// Chromium, and what watches every page: its console, errors, dialogs, downloads, breaches of the content policy, and
// requests to anywhere but the relay. A page that a topic opens by `open` must stay silent; `quiet` tells what was heard.
'use strict'

const fs = require('node:fs')
const { chromium } = require('playwright-core')
const { Failure, WAIT, expect, until } = require('./checks.js')

const EXECUTABLES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome']

/** Starts Chromium; every name but this machine's leads nowhere, so that no test depends on a network. */
async function launch(hosts = '') {
  const executablePath = EXECUTABLES.find((file) => fs.existsSync(file))
  if (!executablePath) throw new Failure('chromium is not installed: apt-get install chromium')
  const rules = `${hosts ? `${hosts},` : ''}MAP * ~NOTFOUND,EXCLUDE 127.0.0.1,EXCLUDE localhost`
  return chromium.launch({ executablePath, args: ['--no-sandbox', `--host-resolver-rules=${rules}`] })
}

/** A person's window on a relay. */
class Visitor {
  static async open(browser, relay, { language = 'en', theme = 'light', width = 1280, height = 900, scripts = true } = {}) {
    const visitor = new Visitor()
    visitor.relay = relay
    visitor.heard = []
    visitor.context = await browser.newContext({
      viewport: { width, height }, locale: language === 'zh' ? 'zh-CN' : 'en-GB', colorScheme: theme, javaScriptEnabled: scripts,
      timezoneId: 'Asia/Shanghai', reducedMotion: 'reduce',
    })
    visitor.context.setDefaultTimeout(WAIT)
    visitor.context.on('request', (request) => {
      const url = request.url()
      if (!url.startsWith(`${relay.origin}/`)) visitor.heard.push(`request to ${url.slice(0, 300)}`)
    })
    visitor.context.on('page', (page) => visitor.watch(page))
    visitor.page = await visitor.context.newPage()
    return visitor
  }

  watch(page) {
    // Breaches of the content policy are told there too. Advice that browsers hide is none.
    page.on('console', (line) => {
      const where = line.location().url.replace(this.relay.origin, '')
      if (!line.text().startsWith('[DOM]')) this.heard.push(`console ${line.type()}: ${line.text().slice(0, 400)} ${where.slice(0, 100)}`)
    })
    page.on('pageerror', (error) => this.heard.push(`error: ${error.message}`))
    page.on('download', (download) => this.heard.push(`download: ${download.suggestedFilename()}`))
    page.on('dialog', (dialog) => {
      this.heard.push(`dialog: ${dialog.message()}`)
      dialog.dismiss().catch(() => {})
    })
  }

  /** Opens a page of the console and wants 200. */
  async open(path) {
    const response = await this.page.goto(this.relay.origin + path, { waitUntil: 'load' })
    expect(response.status(), 200, `GET ${path}`)
    await this.page.waitForSelector('main#main', { state: 'attached' })
    return response
  }

  /** Logs in with a token, and stands on the page Now after it. */
  async login(token) {
    await this.open('/console/login')
    await this.page.fill('form#login input[type=password]', token)
    await this.page.click('form#login button')
    await this.page.waitForURL((url) => !url.pathname.endsWith('/login'))
    return this
  }

  text(selector = 'body') {
    return this.page.locator(selector).first().innerText()
  }

  /** Opens the page again and again until `look` holds on it: for people without scripts, and for tests of what is stored. */
  async reopenUntil(what, path, look) {
    return until(what, async () => {
      await this.open(path)
      return look(this.page)
    })
  }

  /** Wants that nothing was heard since the last time. */
  quiet(where) {
    const heard = this.heard.splice(0)
    expect([...new Set(heard)].slice(0, 8), [], `what the browser heard on ${where}`)
  }

  async close() {
    await this.context.close()
  }
}

module.exports = { Visitor, launch }
