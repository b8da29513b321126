// An OpenID or an event's id in the search box leads to the event.
'use strict'

const { expect, expectThat } = require('./checks.js')
const { withStage } = require('./stage.js')

/** `what` gives the text that is pasted, from the events of the person. */
async function finds(binary, scripts, what) {
  return withStage(binary, {}, async (stage) => {
    const created = Math.floor(Date.now() / 1000) - 60
    await stage.relay.events(60)
    await stage.relay.event({ Event: 'SCAN', EventKey: 'login_of_the_person', Ticket: 't' }, { openid: 'oOfThePerson', created })
    await stage.relay.events(60, undefined, 60)
    const visitor = await stage.visitor('operator', { scripts })
    await visitor.open('/console/')
    const box = visitor.page.locator('input[type=search]').first()
    await box.fill(what(await stage.relay.get('/api/events?from=oOfThePerson')))
    await box.press('Enter')
    // One hit opens by itself or stands alone in the list.
    await visitor.page.waitForSelector('#events, #timeline')
    if (await visitor.page.locator('#events').count()) {
      const rows = visitor.page.locator('#events tbody tr')
      expect(await rows.count(), 1, 'events that are found')
      await rows.first().locator('a').first().click()
      await visitor.page.waitForSelector('#timeline')
    }
    const text = await visitor.text('#main')
    expectThat(text.includes('login_of_the_person'), `it is the event of the person: ${text.slice(0, 300)}`)
    visitor.quiet('the way to an event')
  })
}

module.exports = function* search(binary) {
  const openid = () => 'oOfThePerson'
  const id = ({ events }) => events[0].id
  yield ['search: an OpenID leads to the event', () => finds(binary, true, openid)]
  yield ['search: an OpenID leads to the event, without scripts', () => finds(binary, false, openid)]
  yield ['search: the id of an event leads to it', () => finds(binary, true, id)]
}
