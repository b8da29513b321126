// The fence: what other pages, other hosts, missing headers, stolen cookies and viewers may not do. What changes something
// is listed by the forms that an operator sees and by the API's own document, so that a new one is tried too.
'use strict'

const http = require('node:http')
const { VIEWER } = require('./relay.js')
const { Visitor } = require('./browser.js')
const { crawl, pages } = require('./pages.js')
const { expect, expectThat, until } = require('./checks.js')
const { withStage } = require('./stage.js')

const FORM = 'application/x-www-form-urlencoded'
const LETTERS = 3

/** The cookies of a session, as a header. */
async function cookies(visitor) {
  return (await visitor.context.cookies()).map(({ name, value }) => `${name}=${value}`).join('; ')
}

/** What the forms could change: counts and pauses of all targets. */
async function state(relay) {
  const { targets } = await relay.get('/api/targets')
  return targets.map(({ name, paused, dead, pending, cancelled }) => ({ name, paused, dead, pending, cancelled }))
}

/** All paths of the API's document with this method, with names put in. */
async function documented(relay, method) {
  const { paths } = await relay.get('/api/openapi.json')
  const [event] = (await relay.get('/api/events?limit=1')).events
  const fill = (path) => path.replace(/events\/\{id\}/, `events/${event.id}`).replace(/\{\w+\}/, 'crm')
  return Object.entries(paths).filter(([path, one]) => path.startsWith('/api/') && one[method]).map(([path]) => fill(path))
}

/** Logs in, and sends each form of the operator's pages with `change` made to its headers and fields. */
async function sendForms(stage, change) {
  const visitor = await stage.visitor()
  const { forms } = await crawl(visitor)
  const cookie = await cookies(visitor)
  const before = await state(stage.relay)
  expectThat(forms.length > 3, `forms that post: ${forms.map((form) => form.action)}`)
  const origin = stage.relay.origin
  const answers = []
  for (const form of forms) {
    const sent = { headers: { cookie, origin, 'sec-fetch-site': 'same-origin', 'content-type': FORM }, fields: { ...form.fields } }
    change(sent, form)
    const answer = await stage.relay.ask('POST', form.action, { headers: sent.headers, token: null, body: String(new URLSearchParams(sent.fields)) })
    answers.push([form.action, answer.status, answer.headers.location])
  }
  expect(await state(stage.relay), before, 'state of the targets')
  return answers
}

/** Every form must be refused: 4xx, and nothing has changed. */
async function allRefused(stage, change) {
  const answers = await sendForms(stage, change)
  expect(answers.filter(([, status]) => status < 400 || status >= 500), [], 'forms that were not refused')
  return `${answers.length} forms`
}

async function leadsToLogin(stage) {
  const answers = await sendForms(stage, (sent) => delete sent.headers.cookie)
  expect(answers.filter(([, status, to]) => status !== 303 || !to.startsWith('/console/login')), [], 'answers')
  return `${answers.length} forms`
}

async function otherPages(stage) {
  const visitor = await stage.visitor()
  const { forms } = await crawl(visitor)
  const before = await state(stage.relay)
  const { origin } = stage.relay
  const escape = (text) => text.replace(/[&"<>]/g, (sign) => `&#${sign.charCodeAt()};`)
  let asked = 0
  const attacker = http.createServer((request, response) => {
    asked += 1
    const url = new URL(request.url, 'http://x')
    const form = forms[url.searchParams.get('form') ?? -1]
    const inputs = Object.entries(form?.fields ?? {}).map(([name, value]) => `<input name="${escape(name)}" value="${escape(value)}">`)
    const body = form
      ? `<form method=post action="${escape(new URL(form.action, origin).href)}">${inputs.join('')}</form><script>document.forms[0].submit()</script>`
      : `<iframe src="${origin}/console/"></iframe>`
    response.setHeader('content-type', 'text/html')
    response.end(`<!doctype html><title>another page</title>${body}`)
  })
  await new Promise((resolve) => attacker.listen(0, '127.0.0.1', resolve))
  try {
    const { port } = attacker.address()
    const page = await visitor.context.newPage()
    // The cookie is sent: another port is the same site. With the form token too, as if it had leaked.
    for (const [index, form] of forms.entries()) {
      const answered = page.waitForResponse((response) => response.url().startsWith(origin) && response.request().method() === 'POST')
      await page.goto(`http://127.0.0.1:${port}/?form=${index}`).catch(() => {})
      const status = (await answered).status()
      expectThat(status >= 400 && status < 500, `${form.action} from another port: ${status}`)
    }
    await page.goto(`http://127.0.0.1:${port}/`)
    await until('end of the frame', () => page.frames().length === 2)
    const framed = await page.frames()[1].locator('#main').count().catch(() => 0)
    expect(framed, 0, 'pages of the console in a frame')
    expect(await state(stage.relay), before, 'state of the targets')
    expect(asked >= forms.length + 1, true, 'the other pages were opened')
    return `${forms.length} forms and a frame`
  } finally {
    attacker.closeAllConnections()
    attacker.close()
  }
}

async function rebinding(stage) {
  const port = stage.relay.admin.split(':')[1]
  const context = await stage.browser.newContext()
  try {
    const page = await context.newPage()
    for (const { path, holds } of await pages(stage.relay)) {
      const response = await page.goto(`http://evil.example:${port}${path}`)
      expectThat(response.status() >= 400 && response.status() < 500, `${path} by another name: ${response.status()}`)
      expect(await page.locator(`${holds}, form#login, form[method=post]`).count(), 0, `${path} by another name`)
    }
    const login = await page.goto(`http://evil.example:${port}/console/login`)
    expectThat(login.status() >= 400, `the login by another name: ${login.status()}`)
    expect(await context.cookies(), [], 'cookies for another name')
  } finally {
    await context.close()
  }
}

async function stolenCookie(stage) {
  const cookie = await cookies(await stage.visitor())
  expectThat(cookie.length > 20, 'there is a session')
  expect((await stage.relay.ask('GET', '/metrics', { headers: { cookie }, token: null })).status, 401, 'metrics')
  let asked = 0
  for (const method of ['get', 'post', 'delete', 'put']) {
    for (const path of await documented(stage.relay, method)) {
      const headers = { cookie, origin: stage.relay.origin, 'sec-fetch-site': 'same-origin', 'content-type': 'application/json' }
      const answer = await stage.relay.ask(method.toUpperCase(), path, { headers, token: null, body: method === 'get' ? undefined : '{}' })
      expect(answer.status, 401, `${method} ${path} with nothing but the cookie`)
      asked += 1
    }
  }
  expectThat(asked > 20, `calls of the API: ${asked}`)
  return `${asked} calls`
}

async function viewer(stage) {
  const before = await state(stage.relay)
  const calls = await documented(stage.relay, 'post')
  for (const path of calls) {
    const answer = await stage.relay.ask('POST', path, { token: VIEWER, headers: { 'content-type': 'application/json' }, body: '{}' })
    expect(answer.status, 403, `POST ${path} by a viewer: ${answer.text.slice(0, 200)}`)
  }
  const operator = await stage.visitor()
  const { forms } = await crawl(operator)
  const person = await stage.visitor('viewer')
  const seen = await crawl(person)
  const token = seen.forms[0]?.fields ?? {}
  const cookie = await cookies(person)
  let tried = 0
  // Of what stands in all pages, a viewer has these too.
  for (const form of forms.filter(({ action }) => !/\/(logout|language|theme|keys|preferences)$/.test(action))) {
    const headers = { cookie, origin: stage.relay.origin, 'sec-fetch-site': 'same-origin', 'content-type': FORM }
    const answer = await stage.relay.ask('POST', form.action, { headers, token: null, body: String(new URLSearchParams({ ...form.fields, ...token })) })
    expect(answer.status, 403, `POST ${form.action} by a viewer`)
    tried += 1
  }
  expectThat(calls.length > 8 && tried > 3, `${calls.length} calls and ${tried} forms`)
  expect(await state(stage.relay), before, 'state of the targets')
  const [event] = (await stage.relay.get('/api/events?limit=1')).events
  await person.open(`/console/events/${event.id}`)
  expectThat(!(await person.page.content()).includes('oPerson'), 'a viewer sees no OpenID')
  return `${calls.length} calls and ${tried} forms`
}

async function headers(stage) {
  const visitor = await stage.visitor()
  for (const { path } of await pages(stage.relay)) {
    const found = (await visitor.open(path)).headers()
    const policy = Object.fromEntries(found['content-security-policy'].split(';').map((one) => one.trim().split(/ (.*)/)))
    expect(policy['default-src'], "'none'", `default-src of ${path}`)
    expect([policy['frame-ancestors'], policy['base-uri'], policy['form-action']], ["'none'", "'none'", "'self'"], `policy of ${path}`)
    expectThat(!/unsafe|\*|data:|blob:|https?:/.test(found['content-security-policy']), `no exceptions in the policy of ${path}`)
    expect([found['x-content-type-options'], found['cache-control']], ['nosniff', 'no-store'], `headers of ${path}`)
  }
  const [session, ...more] = (await visitor.context.cookies()).filter(({ httpOnly }) => httpOnly)
  expect([session.sameSite, more.length], ['Strict', 0], 'the cookie of the session')
  await visitor.page.locator('form[action$="/logout"] button').first().click()
  await visitor.page.waitForURL('**/console/login')
  const answer = await stage.relay.ask('GET', '/console/', { token: null, headers: { cookie: `${session.name}=${session.value}` } })
  expectThat(answer.status !== 200, `a session is worth nothing after the logout: ${answer.status}`)
}

/** A guesser is slowed down, and the page says no more than that. */
async function guesses(stage) {
  const visitor = await Visitor.open(stage.browser, stage.relay)
  stage.visitors.push(visitor)
  const statuses = []
  for (let guess = 0; guess < 15; guess++) {
    await visitor.page.goto(`${stage.relay.origin}/console/login`)
    if (!(await visitor.page.locator('form#login').count())) break
    await visitor.page.fill('form#login input[type=password]', `wrong-token-${guess}-0123456789`)
    const answered = visitor.page.waitForResponse((response) => response.request().method() === 'POST')
    await visitor.page.click('form#login button')
    statuses.push((await answered).status())
  }
  expectThat(statuses.includes(429), `a guesser is stopped: ${statuses}`)
  expect((await visitor.context.cookies()).filter(({ httpOnly }) => httpOnly), [], 'sessions by guessing')
  return `after ${statuses.indexOf(429)} guesses`
}

const on = (binary, body) => () =>
  withStage(binary, { hosts: 'MAP evil.example 127.0.0.1' }, async (stage) => {
    await stage.deadLetters(LETTERS)
    return body(stage)
  })

module.exports = function* fence(binary) {
  const without = (name) => (sent) => delete sent.headers[name]
  const bare = (sent) => ['origin', 'sec-fetch-site'].forEach((name) => without(name)(sent))
  const other = 'http://127.0.0.1:1'
  yield ['fence: the pages have their headers, and a session ends with the logout', on(binary, headers)]
  yield ['fence: no form from another port, and no frame', on(binary, otherPages)]
  yield ['fence: another name for this machine leads nowhere', on(binary, rebinding)]
  yield ['fence: forms without Origin and Sec-Fetch-Site', on(binary, (stage) => allRefused(stage, bare))]
  yield ['fence: forms of another origin', on(binary, (stage) =>
    allRefused(stage, (sent) => Object.assign(sent.headers, { origin: other, 'sec-fetch-site': 'same-site' })))]
  yield ['fence: forms of another origin, by a browser without Sec-Fetch-Site', on(binary, (stage) =>
    allRefused(stage, (sent) => { without('sec-fetch-site')(sent); sent.headers.origin = other }))]
  yield ['fence: forms without the form token', on(binary, (stage) => allRefused(stage, (sent) => (sent.fields = {})))]
  yield ['fence: forms without a session lead to the login', on(binary, leadsToLogin)]
  yield ['fence: a stolen cookie opens nothing of the API', on(binary, stolenCookie)]
  yield ['fence: a viewer changes nothing', on(binary, viewer)]
  yield ['fence: guesses of a token', on(binary, guesses)]
}
