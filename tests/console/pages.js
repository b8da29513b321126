// The pages of the console, and what a crawl of their links and forms finds.
'use strict'

const { expect } = require('./checks.js')

/** Each page with what stands on it; of an event the first that is listed. */
async function pages(relay) {
  const [event] = (await relay.get('/api/events?limit=1')).events
  return [
    { name: 'now', path: '/console/', holds: '#verdict' },
    { name: 'target', path: '/console/targets/crm', holds: '#state' },
    { name: 'dead', path: '/console/dead', holds: '#groups' },
    { name: 'letters', path: '/console/dead?target=crm', holds: '#letters' },
    { name: 'events', path: '/console/events', holds: '#events' },
    { name: 'event', path: `/console/events/${event.id}`, holds: '#timeline' },
    { name: 'live', path: '/console/live', holds: '#rows' },
  ]
}

/** What a path is a page of: ids and names in it are one kind. */
function kind(path) {
  return path.replace(/evt_[0-9a-z]+/g, 'ID').replace(/\/targets\/[^/?]+/, '/targets/NAME')
}

/** Follows every link of the console, one of a kind of page, and gives all addresses and all forms that post. */
async function crawl(visitor, most = 60) {
  const [queue, seen, forms] = [['/console/'], new Map(), new Map()]
  while (queue.length && seen.size < most) {
    const path = queue.shift()
    await visitor.open(path)
    seen.set(kind(path.split('?')[0]), (seen.get(kind(path.split('?')[0])) ?? 0) + 1)
    const found = await visitor.page.evaluate(() => ({
      links: [...document.querySelectorAll('a[href]')].map((one) => one.href),
      forms: [...document.querySelectorAll('form')].filter((form) => form.method === 'post').map((form) => ({
        action: form.getAttribute('action') ?? location.pathname,
        fields: Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === 'string')),
      })),
    }))
    for (const form of found.forms) forms.set(`${kind(form.action)} ${form.fields.action}`, { ...form, on: path })
    for (const link of found.links) {
      const url = new URL(link)
      if (url.origin !== visitor.relay.origin || !url.pathname.startsWith('/console')) continue
      const [next, shape] = [url.pathname + url.search, kind(url.pathname)]
      // A few of a kind: the first page of a list, and what its filters lead to.
      const waiting = queue.filter((one) => kind(one.split('?')[0]) === shape).length
      if ((seen.get(shape) ?? 0) + waiting < 3 && !queue.includes(next)) queue.push(next)
    }
  }
  return { paths: [...seen.keys()].sort(), forms: [...forms.values()] }
}

/** Opens each page and wants what stands on it; `look` is called on each. */
async function eachPage(visitor, look) {
  const list = await pages(visitor.relay)
  for (const page of list) {
    await visitor.open(page.path)
    expect(await visitor.page.locator(page.holds).count(), 1, `${page.holds} on ${page.path}`)
    await look(page)
  }
  return list.length
}

module.exports = { crawl, eachPage, kind, pages }
