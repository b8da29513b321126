// The pictures of the docs, from the real program: docs/pictures/console-*.png, each under 80 KB.
'use strict'

const fs = require('node:fs')
const path = require('node:path')
const { expectThat, until } = require('./checks.js')
const { withStage } = require('./stage.js')

const FOLDER = path.resolve(__dirname, '../../docs/pictures')
const LIMIT = 80 * 1024

/** A night with something in it: two groups of dead letters, a target that is down, a paused one. */
async function something(stage) {
  const { relay, targets } = stage
  await relay.events(240)
  await stage.deadLetters(84, 'no such campaign', 240)
  await stage.deadLetters(36, 'this handler has moved', 324)
  targets.crm.breaks(503, 'upstream timed out')
  targets.legacy.breaks(503, 'upstream timed out')
  await relay.events(30, () => ({ Content: '今天几点开门？' }), 400)
  await relay.ask('POST', '/api/targets/legacy/pause')
  await until('word that crm is down', async () => {
    const { checks } = await relay.get('/api/checks')
    return checks.some(({ subject }) => subject === 'crm')
  })
}

async function shoot(visitor, name, address) {
  await visitor.open(address)
  await visitor.page.waitForLoadState('networkidle').catch(() => {})
  const file = path.join(FOLDER, `console-${name}.png`)
  await visitor.page.screenshot({ path: file, clip: { x: 0, y: 0, width: 1100, height: 460 }, animations: 'disabled', caret: 'hide' })
  const { size } = fs.statSync(file)
  expectThat(size < LIMIT, `${file} has ${size} bytes, fewer than ${LIMIT} are allowed`)
  return `${name} ${Math.round(size / 1024)} KB`
}

async function screens(binary) {
  return withStage(binary, {}, async (stage) => {
    await something(stage)
    fs.mkdirSync(FOLDER, { recursive: true })
    const [event] = (await stage.relay.get('/api/events?target=crm&state=dead&limit=1')).events
    const taken = []
    for (const language of ['en', 'zh']) {
      const light = await stage.visitor('operator', { language, width: 1100, height: 640 })
      taken.push(await shoot(light, `now-${language}`, '/console/'))
      taken.push(await shoot(light, `dead-${language}`, '/console/dead'))
      const dark = await stage.visitor('operator', { language, theme: 'dark', width: 1100, height: 640 })
      taken.push(await shoot(dark, `event-${language}`, `/console/events/${event.id}`))
      taken.push(await shoot(dark, `target-${language}`, '/console/targets/crm'))
      for (const visitor of [light, dark]) visitor.quiet('the pages of the pictures')
    }
    return taken.join(', ')
  })
}

module.exports = function* pictures(binary) {
  yield ['screens: pictures for the docs', () => screens(binary)]
}
