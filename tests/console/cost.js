// What readers of the console cost a push: eight that open Now once a second, beside a constant stream of pushes, on a store
// of 1,000,000 events; without and with them in turn. Wants an idle machine with 2 cores, and the shipped binary.
//
// EVENTS (1,000,000), SECONDS a part (30), RATE of pushes a second (200), PAGE (/console/).
'use strict'

const { expectThat, until } = require('./checks.js')
const { Relay } = require('./relay.js')
const { Target } = require('./targets.js')
const { Account, message, post, seal } = require('./wechat.js')

const EVENTS = Number(process.env.EVENTS ?? 1_000_000)
const SECONDS = Number(process.env.SECONDS ?? 30)
const RATE = Number(process.env.RATE ?? 200)
const PAGE = process.env.PAGE ?? '/console/'
const READERS = 8
const LATER = 1 // ms by which readers may move the p99 of the answers
const OPENED = 20 // ms in which Now is there

/** The value that this share of the sorted values does not exceed. */
function quantile(values, share) {
  const sorted = Float64Array.from(values).sort()
  return sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * share) - 1)]
}

/** Calls `act` at these moments after the start, whether or not the one before has ended; all results. */
async function paced(count, every, act) {
  const begun = performance.now()
  const results = []
  for (let index = 0; index < count; index++) {
    const wait = begun + index * every - performance.now()
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait))
    results.push(act(index))
  }
  return Promise.all(results)
}

/** One part: how long the answers took, and how long the page took where there are readers. */
async function part(relay, readers, label) {
  const look = async () => {
    const begun = performance.now()
    const { status } = await relay.ask('GET', PAGE)
    expectThat(status === 200, `${PAGE} answers ${status}`)
    return performance.now() - begun
  }
  const push = async (index) => {
    const openid = `oPerson${index}`
    const sealed = seal(relay.account, message('event', openid, { Event: 'SCAN', EventKey: `${label}_${index}`, Ticket: 't' }), openid)
    const { status, took } = await post(relay.push, sealed)
    expectThat(status === 200, `a push is answered ${status}`)
    return took
  }
  // The readers come one after the other, not all at once.
  const looks = Array.from({ length: readers }, async (_, reader) => {
    await new Promise((resolve) => setTimeout(resolve, (reader * 1000) / READERS))
    return paced(SECONDS, 1000, look)
  })
  const pushes = await paced(SECONDS * RATE, 1000 / RATE, push)
  const opened = (await Promise.all(looks)).flat()
  const told = (values) => `p50 ${quantile(values, 0.5).toFixed(2)} ms, p99 ${quantile(values, 0.99).toFixed(2)} ms`
  console.log(`     ${label}: ${readers} readers, ${pushes.length} pushes ${told(pushes)}` + (opened.length ? `; ${PAGE} ${opened.length} times ${told(opened)}` : ''))
  return { pushes, opened }
}

async function measure(binary) {
  const crm = await new Target('crm').listen()
  const account = new Account('shop')
  const relay = new Relay(binary)
  try {
    const routes = `[[accounts.shop.routes]]\nmatch = { msg_type = "*" }\nto = ["crm"]\n`
    await relay.serve(`${account.toml()}${routes}[targets.crm]\nurl = "${crm.url}"\n`, { account })
    const begun = performance.now()
    await relay.events(EVENTS)
    await until('delivery of all', async () => (await relay.target('crm')).pending === 0, 600_000)
    console.log(`     ${EVENTS} events stored and delivered in ${((performance.now() - begun) / 1000).toFixed(0)} s`)
    await part(relay, READERS, 'warm')
    const parts = []
    for (const label of ['A1', 'B1', 'A2', 'B2']) parts.push(await part(relay, label[0] === 'B' ? READERS : 0, label))
    const p99 = (indices) => quantile(indices.flatMap((index) => parts[index].pushes), 0.99)
    const [without, beside] = [p99([0, 2]), p99([1, 3])]
    const opened = [...parts[1].opened, ...parts[3].opened]
    const found = `p99 of the answers ${without.toFixed(2)} ms without readers, ${beside.toFixed(2)} ms with ${READERS}; Now p50 ${quantile(opened, 0.5).toFixed(1)} ms, p99 ${quantile(opened, 0.99).toFixed(1)} ms`
    expectThat(beside - without < LATER, `readers move the answers by less than ${LATER} ms: ${found}`)
    expectThat(quantile(opened, 0.5) < OPENED, `Now is there within ${OPENED} ms: ${found}`)
    return found
  } finally {
    await relay.end()
    crm.end()
  }
}

module.exports = function* cost(binary) {
  yield ['cost: readers of Now beside pushes', () => measure(binary)]
}
