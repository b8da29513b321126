// The live page: rows as they happen, and never more than 200.
'use strict'

const { expect, expectThat, until } = require('./checks.js')
const { withStage } = require('./stage.js')

const MOST = 200
const EVENTS = 4000

async function fast(binary) {
  return withStage(binary, {}, async (stage) => {
    const visitor = await stage.visitor()
    const { page } = visitor
    await visitor.open('/console/live')
    const rows = page.locator('#rows tr')
    const fresh = async (key) => {
      await stage.relay.event({ Event: 'SCAN', EventKey: key, Ticket: 't' })
      const [{ id }] = (await stage.relay.get('/api/events?limit=1')).events
      return until(`row of ${key}`, async () => (await page.locator('#rows').innerText()).includes(id))
    }
    await fresh('before_the_flood')
    // Watched from within, at each change: a look from outside would miss what is there for a moment only.
    await page.evaluate(() => {
      const rows = document.querySelector('#rows')
      window.most = 0
      new MutationObserver(() => (window.most = Math.max(window.most, rows.querySelectorAll('tr').length))).observe(rows, { childList: true, subtree: true })
    })
    const begun = performance.now()
    await stage.relay.events(EVENTS)
    const rate = Math.round(EVENTS / ((performance.now() - begun) / 1000))
    await fresh('after_the_flood')
    const most = await page.evaluate(() => window.most)
    expectThat(most >= MOST - 1 && most <= MOST + 1, `at most ${MOST} rows: ${most}`)
    const heap = await page.evaluate(() => performance.memory.usedJSHeapSize)
    expectThat(heap < 100 * 1024 * 1024, `less than 100 MB: ${heap}`)
    expect(await rows.count() <= MOST, true, `rows in the end: ${await rows.count()}`)
    visitor.quiet('the live page')
    return `${rate} pushes a second, ${most} rows`
  })
}

module.exports = function* live(binary) {
  yield ['live: a flood leaves 200 rows, and the newest is among them', () => fast(binary)]
}
