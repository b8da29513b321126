// The night walk: a target breaks, Now says so, its dead letters stand in one group, it is mended, and all of the group is
// retried: by mouse, by keyboard alone, and without scripts.
'use strict'

const { expect, expectThat, until } = require('./checks.js')
const { withStage } = require('./stage.js')

// More than two pages of letters.
const LETTERS = 120

/** Follows a link or presses a button, and counts it. */
class Hand {
  steps = 0

  constructor(visitor, isKeyboard) {
    Object.assign(this, { visitor, isKeyboard })
  }

  async press(locator) {
    this.steps += 1
    await locator.waitFor()
    if (!this.isKeyboard) return locator.click()
    const handle = await locator.elementHandle()
    for (let tabs = 0; tabs < 400; tabs++) {
      if (await handle.evaluate((one) => one === document.activeElement)) {
        const outline = await handle.evaluate((one) => getComputedStyle(one).outlineStyle)
        expectThat(outline !== 'none', `the focus is visible on ${await locator.innerText()}`)
        return this.visitor.page.keyboard.press('Enter')
      }
      await this.visitor.page.keyboard.press('Tab')
    }
    throw new Error(`400 tabs do not lead to ${locator}`)
  }
}

/** What asks again before an action, on a page of its own. */
function confirmation(page, action) {
  return page.locator(`#question ~ * [data-action=${action}]`)
}

async function walk(binary, { scripts = true, isKeyboard = false }) {
  return withStage(binary, {}, async (stage) => {
    const { relay, targets } = stage
    const visitor = await stage.visitor('operator', { scripts })
    const { page } = visitor
    const hand = new Hand(visitor, isKeyboard)
    const says = (what, look) => (scripts ? until(what, () => look(page)) : visitor.reopenUntil(what, '/console/', look))
    await visitor.open('/console/')
    const needs = (one) => one.locator('#needs-a-hand').innerText({ timeout: 1000 }).catch(() => '')
    expectThat(!(await needs(page)).includes('crm'), 'nothing needs a hand before')
    const well = await visitor.text('#verdict')

    await stage.deadLetters(LETTERS)
    await says('word of the dead letters on Now', async (one) => (await needs(one)).includes('crm'))
    expectThat((await visitor.text('#verdict')) !== well, `the verdict is another one than "${well}"`)

    await hand.press(page.locator('nav a[href="/console/dead"]'))
    const group = page.locator('#groups tr[data-name=crm]')
    await group.first().waitFor()
    expect(await group.count(), 1, 'groups of crm')
    expectThat(/\b120\b/.test(await group.innerText()), `the group counts all its letters: ${await group.innerText()}`)
    const button = group.locator('[data-action=retry]')
    expectThat(/\b120\b/.test(await button.innerText()), `the button says how many: ${await button.innerText()}`)

    targets.crm.mend()
    await hand.press(button)
    const sure = confirmation(page, 'retry')
    await sure.waitFor()
    expectThat(/\b120\b/.test(await visitor.text('#question')), 'the question says how many')
    expect((await relay.target('crm')).dead, LETTERS, 'dead letters before the answer')
    await hand.press(sure)
    await until('delivery of the whole group', async () => (await relay.target('crm')).delivered === LETTERS)
    await visitor.open('/console/')
    await says('word on Now that all is well', async (one) => !(await needs(one)).includes('crm'))
    const actions = relay.lines.filter((line) => line.message === 'operator action')
    expect(actions.map(({ who, action, target, count }) => ({ who, action, target, count })),
      [{ who: 'li', action: 'retry', target: 'crm', count: LETTERS }], 'who did what to how many, by the log')
    visitor.quiet('the night walk')

    const ledger = relay.audit()
    expect([ledger.dead, ledger.pending, ledger.delivered], [0, 0, LETTERS], 'dead, pending and delivered by the ledger')
    return `${hand.steps} ${isKeyboard ? 'targets of the keyboard' : 'clicks'}`
  })
}

/** The target that answers 503 is named as broken, with its answer, and stays reachable in one step from Now. */
async function broken(binary) {
  return withStage(binary, {}, async (stage) => {
    const visitor = await stage.visitor()
    stage.targets.crm.breaks(503, 'upstream timed out')
    await stage.relay.events(40)
    await visitor.open('/console/')
    const row = visitor.page.locator('#targets tr[data-name=crm]')
    await until('word that crm is down', async () => /down/i.test(await row.innerText()))
    await row.locator('a').first().click()
    await visitor.page.waitForURL('**/console/targets/crm')
    expectThat((await visitor.text('#main')).includes('503'), 'the page of the target names the status')
    visitor.quiet('the page of a broken target')
  })
}

module.exports = function* night(binary) {
  yield ['night: by mouse', () => walk(binary, {})]
  yield ['night: by keyboard alone', () => walk(binary, { isKeyboard: true })]
  yield ['night: without scripts', () => walk(binary, { scripts: false })]
  yield ['night: what broke, with which status', () => broken(binary)]
}
