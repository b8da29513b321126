// Hostile texts in every field that a push, a target or a certificate can fill. Two relays get the same events, one with
// harmless texts: no page may have an element that harmless texts never make, and the browser must hear nothing.
'use strict'

const { expect, expectThat, until } = require('./checks.js')
const { eachPage } = require('./pages.js')
const { withStage } = require('./stage.js')
const { certificate } = require('./targets.js')
const { message, post, seal } = require('./wechat.js')

const CORPUS = [
  '<script>alert(1)</script>',
  '</script></style></title></textarea></main><img src=x onerror=alert(2)>',
  '"><svg/onload=alert(3)><base href="https://evil.example/">',
  '\'" autofocus onfocus=alert(4) style=x:expression(alert(4)) x="',
  'javascript:alert(5)//https://evil.example/',
  '<iframe srcdoc="<script>alert(6)</script>"></iframe><form action=https://evil.example/><input name=id>',
  'jaVasCript:/*-/*`/*\\`/*\'/*"/**/(/* */oNcliCk=alert(7) )//%0D%0A//</stYle/</titLe/</teXtarEa/</scRipt/--!>\\x3csVg/oNloAd=alert(7)//>',
  '{{constructor.constructor("alert(8)")()}}${alert(8)}<%= alert(8) %>',
  '&lt;img src=x onerror=alert(9)&gt;&#60;script&#62;',
  '\u202Egnp.exe\u2066\u200B\uFEFF\u0085\u2028nothing',
  '<!--><img src=https://evil.example/pixel.png>--><link rel=stylesheet href=//evil.example/x.css>',
  '<meta http-equiv=refresh content="0;url=https://evil.example/"><main id="main">',
  'https://evil.example/?a=<b>&c="d"',
  '%3Cscript%3Ealert(10)%3C/script%3E../../logout?x#y',
]
const LONG = 'x<b>'.repeat(16_384) // 64 KiB

/** Pushes the same events, with `text` from the corpus or harmless in its place, and waits until each has met its fate. */
async function fill(stage, isHostile) {
  const { relay, targets } = stage
  // Different ones, or they would be tries of one push.
  const texts = [...CORPUS, LONG].map((text, index) => (isHostile ? text : `harmless ${index}`))
  const sent = []
  for (const text of texts) {
    const short = text.slice(0, 400)
    // The status is told in words by the target too; nothing in a header may end it.
    targets.crm.breaks(410, text, { 'content-type': `text/html; x=${encodeURIComponent(short)}`, location: encodeURI(short).slice(0, 300) })
    const openid = short.slice(0, 100)
    for (const clear of [
      message('event', openid, { Event: short, EventKey: short, Ticket: short }),
      message('event', openid, { Event: 'SCAN', EventKey: short, Ticket: short }),
      message('text', openid, { Content: text }),
      message(short.slice(0, 100), openid, { Content: short }),
    ]) {
      const { status } = await post(relay.push, seal(relay.account, clear, openid))
      sent.push(status)
    }
    await until('the fate of these', async () => (await relay.target('crm')).pending === 0)
  }
  return sent
}

/** The elements of a page, each with the names of its attributes and what it is in. Marks within a text are none of them. */
function elements() {
  const marks = new Set(['BDI', 'WBR'])
  const found = new Set()
  const walk = (node, within) => {
    const names = [...node.attributes].map((one) => one.name).sort().join(' ')
    const path = `${within}<${node.tagName}${names ? ` ${names}` : ''}>`
    found.add(path)
    for (const inner of node.children) if (!marks.has(inner.tagName)) walk(inner, path)
  }
  walk(document.documentElement, '')
  return [...found]
}

/** Every page and every event of a stage: its elements. */
async function pages(stage, texts) {
  const visitor = await stage.visitor()
  const found = new Map()
  const keep = async (name, path) => {
    found.set(name, { path, page: await visitor.page.evaluate(elements), heard: visitor.heard.splice(0) })
  }
  await eachPage(visitor, ({ name, path }) => keep(name, path))
  await visitor.open('/console/targets/legacy')
  await keep('target legacy', '/console/targets/legacy')
  const { events } = await stage.relay.get('/api/events?limit=100')
  for (const [index, { id }] of events.entries()) {
    await visitor.open(`/console/events/${id}`)
    await keep(`event ${index}`, id)
  }
  // What is asked for comes back in the fields of the filter.
  for (const [index, text] of texts.entries()) {
    const value = encodeURIComponent(text.slice(0, 400))
    for (const path of [`/console/events?event=${value}&from=${value}&account=${value}`, `/console/dead?target=${value}`, `/console/events?q=${value}`]) {
      await visitor.page.goto(stage.relay.origin + path)
      await keep(`${path.split('=')[0]} ${index}`, path.slice(0, 80))
    }
  }
  return found
}

async function compare(binary) {
  const options = (text) => ({ tls: (folder) => certificate(folder, text) })
  return withStage(binary, options('</script><svg onload=alert(11)>'), (hostile) =>
    withStage(binary, options('harmless'), async (harmless) => {
      const accepted = [await fill(hostile, true), await fill(harmless, false)]
      const stored = [...accepted[0]].filter((status) => status === 200).length
      expectThat(stored > CORPUS.length * 3, `most hostile pushes are stored: ${stored} of ${accepted[0].length}`)
      const texts = [...CORPUS.keys()]
      const [found, wanted] = [await pages(hostile, CORPUS), await pages(harmless, texts.map((index) => `harmless ${index}`))]
      // How many rows a list has depends on what the targets had time for; what a row is made of does not.
      const known = new Set([...wanted.values()].flatMap(({ page }) => page))
      const faults = []
      for (const [name, { path, page, heard }] of found) {
        if (heard.length) faults.push(`${path}: ${heard[0]}`)
        for (const element of page) if (!known.has(element)) faults.push(`${name} (${path}): ${element}`)
      }
      expect(faults, [], `${faults.length} faults`)
      expectThat(found.size > 60 && known.size > 100, `${found.size} pages of ${known.size} elements`)
      return `${found.size} pages of ${known.size} kinds of elements, ${stored} of ${accepted[0].length} pushes stored`
    }),
  )
}

module.exports = function* hostile(binary) {
  yield ['hostile: texts of pushes, targets and certificates are nothing but text', () => compare(binary)]
}
