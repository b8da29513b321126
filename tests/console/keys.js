// Single keys: they lead to the pages and along the rows, are silent while somebody types, and can be turned off.
'use strict'

const { expect, expectThat, until } = require('./checks.js')
const { withStage } = require('./stage.js')

async function keys(binary) {
  return withStage(binary, {}, async (stage) => {
    await stage.deadLetters(3)
    const visitor = await stage.visitor()
    const { page } = visitor
    const at = () => new URL(page.url()).pathname
    await visitor.open('/console/')
    for (const [key, path] of [['d', '/console/dead'], ['l', '/console/live'], ['n', '/console/'], ['e', '/console/events']]) {
      await page.keyboard.press('g')
      await page.keyboard.press(key)
      await page.waitForURL(`**${path}`)
      await page.waitForLoadState('load')
    }
    await page.keyboard.press('j')
    await page.keyboard.press('j')
    const second = await page.locator('#events tbody tr').nth(1).getAttribute('data-id')
    await page.keyboard.press('Enter')
    await page.waitForURL(`**/console/events/${second}`)
    await page.waitForLoadState('load')

    await page.keyboard.press('/')
    await page.keyboard.type('gd')
    expect([await page.inputValue('#search'), at()], ['gd', `/console/events/${second}`], 'what is typed, and where')

    await page.click('#keys')
    await page.keyboard.press('/')
    expectThat(await page.evaluate(() => document.activeElement.id !== 'search'), 'keys that are turned off do nothing')
    await visitor.open('/console/')
    await until('memory of that', async () => (await page.getAttribute('#keys', 'aria-pressed')) === 'true')
    visitor.quiet('a walk by keys')
  })
}

/** Language and colours are chosen in the foot, and kept. */
async function looks(binary) {
  return withStage(binary, {}, async (stage) => {
    const visitor = await stage.visitor('operator', { scripts: false })
    const { page } = visitor
    await visitor.open('/console/dead')
    await page.click('footer a[href*="lang=zh"]')
    await page.click('footer a[href*="theme=dark"]')
    expect(new URL(page.url()).pathname, '/console/dead', 'the page that was left')
    await visitor.open('/console/')
    const html = page.locator('html')
    expect([await html.getAttribute('lang'), await html.getAttribute('data-theme')], ['zh-CN', 'dark'], 'language and colours')
    const [red] = (await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor + getComputedStyle(document.body).backgroundColor)).match(/\d+/g)
    expectThat(Number(red) < 80, `a dark page is dark: ${red}`)
  })
}

module.exports = function* all(binary) {
  yield ['keys: they lead to pages and rows, and can be turned off', () => keys(binary)]
  yield ['keys: language and colours are chosen and kept, without scripts', () => looks(binary)]
}
