// How the pages are made, by judges that are not ours: axe-core on every page in both languages and both themes, at full
// width, enlarged and at 360 px; html-validate on the HTML as it was sent.
'use strict'

const fs = require('node:fs')
const { HtmlValidate } = require('html-validate')
const { expect, expectThat } = require('./checks.js')
const { crawl, eachPage, kind, pages } = require('./pages.js')
const { withStage } = require('./stage.js')

const AXE = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8')
const TAGS = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']
// 640 is 1280 at 200 %.
const WIDTHS = [1280, 640, 360]

/** Letters, delivered events and a paused target: something stands on each page. */
async function withThings(binary, body) {
  return withStage(binary, {}, async (stage) => {
    await stage.relay.events(30)
    await stage.deadLetters(60, 'this handler has moved', 30)
    await stage.relay.ask('POST', '/api/targets/legacy/pause')
    await stage.relay.event({ Content: '今天几点开门？' }, { kind: 'text' })
    return body(stage)
  })
}

/** Axe is put in by the debugger, which no content policy stops. */
async function axe(visitor, where) {
  await visitor.page.evaluate(AXE)
  const found = await visitor.page.evaluate((values) => window.axe.run(document, { runOnly: { type: 'tag', values } }), TAGS)
  const told = found.violations.map(({ id, nodes }) => `${id}: ${nodes.length} x ${nodes[0].html.slice(0, 160)} ${nodes[0].failureSummary.slice(0, 200)}`)
  expect(told, [], `what axe finds on ${where}`)
  expectThat(found.passes.length > 5, `axe has looked at ${where}`)
}

async function looked(binary, language, theme) {
  return withThings(binary, async (stage) => {
    let count = 0
    for (const width of WIDTHS) {
      const visitor = await stage.visitor('operator', { language, theme, width })
      const faults = []
      await eachPage(visitor, async ({ path }) => {
        const where = `${path} at ${width} px`
        await axe(visitor, where).catch((error) => faults.push(error.message))
        const wide = await visitor.page.evaluate(() => document.documentElement.scrollWidth - innerWidth)
        if (wide > 0) faults.push(`${where} is ${wide} px too wide`)
        const told = await visitor.page.evaluate(() => document.documentElement.lang)
        if (!told.startsWith(language)) faults.push(`${where} says that it is in ${told}`)
        count += 1
      })
      visitor.quiet(`all pages at ${width} px`)
      expect(faults, [], 'faults')
      await visitor.close()
    }
    const stranger = await stage.visitor(null, { language, theme, width: 360 })
    await stranger.open('/console/login')
    await axe(stranger, 'the login')
    return `${count + 1} looks`
  })
}

/** The rules that are about taste are off; what is checked is that browsers need not guess. */
async function valid(binary) {
  const judge = new HtmlValidate({ extends: ['html-validate:standard'], rules: { 'long-title': 'off', 'no-trailing-whitespace': 'off', 'doctype-style': 'off', 'attribute-boolean-style': 'off', 'void-style': 'off', 'no-raw-characters': 'off', 'no-inline-style': 'error' } })
  return withThings(binary, async (stage) => {
    const faults = []
    for (const language of ['en', 'zh']) {
      const visitor = await stage.visitor('operator', { language })
      for (const { path } of [...(await pages(stage.relay)), { path: '/console/login' }]) {
        const html = await (await visitor.open(path)).text()
        const report = await judge.validateString(html)
        for (const { messages } of report.results) {
          for (const one of messages) faults.push(`${path} ${one.line}:${one.column} ${one.ruleId}: ${one.message}`)
        }
      }
    }
    expect(faults.slice(0, 12), [], `${faults.length} complaints`)
  })
}

/** Every link leads to a page, and the crawl comes by every page that is checked here. */
async function linked(binary) {
  return withThings(binary, async (stage) => {
    const visitor = await stage.visitor()
    const { paths } = await crawl(visitor)
    const wanted = [...new Set((await pages(stage.relay)).map(({ path }) => kind(path.split('?')[0])))].sort()
    expect(wanted.filter((one) => !paths.includes(one)), [], 'pages that nothing leads to')
    // This one leads back to where it was asked from.
    expect(paths.filter((one) => !wanted.includes(one)), ['/console/look'], 'pages that are not checked')
    visitor.quiet('a walk along all links')
    return `${paths.length} kinds of pages`
  })
}

module.exports = function* look(binary) {
  yield ['look: every link leads to a page that is checked here', () => linked(binary)]
  yield ['look: html-validate on every page, in both languages', () => valid(binary)]
  for (const language of ['en', 'zh']) {
    for (const theme of ['light', 'dark']) yield [`look: axe on every page, ${language}, ${theme}`, () => looked(binary, language, theme)]
  }
}
