// Checks that are counted: a line for each, and `N passed, N failed` at the end; and waits for a state, with a deadline.
'use strict'

const { isDeepStrictEqual, inspect } = require('node:util')

const WAIT = 15_000 // ms; what is waited for takes milliseconds, a busy machine is allowed more

/** A check that does not hold. */
class Failure extends Error {}

function expect(found, expected, what) {
  if (isDeepStrictEqual(found, expected)) return
  const shown = (value) => inspect(value, { depth: 6, breakLength: 160, maxStringLength: 600 })
  throw new Failure(`${what}: expected ${shown(expected)}, found ${shown(found)}`)
}

function expectThat(holds, what) {
  if (!holds) throw new Failure(what)
}

/** The first truthy value of `look`, which is asked again until then; a page that is not there yet is no failure. */
async function until(what, look, wait = WAIT) {
  const deadline = performance.now() + wait
  let last
  for (;;) {
    try {
      const found = await look()
      if (found) return found
      last = found
    } catch (error) {
      last = error
    }
    if (performance.now() > deadline) throw new Failure(`no ${what} in ${wait / 1000} s; last: ${last?.message ?? inspect(last)}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

/** Runs checks one after the other. */
class Checks {
  passed = 0
  failed = 0

  async run(name, check) {
    try {
      const note = await check()
      this.passed += 1
      console.log(`ok   ${name}` + (note ? ` (${note})` : ''))
    } catch (error) {
      this.failed += 1
      const told = error instanceof Failure ? error.message : (error.stack ?? String(error))
      console.log(`FAIL ${name}: ${told.slice(0, 6000)}`)
    }
  }

  close() {
    console.log(`${this.passed} passed, ${this.failed} failed`)
    return this.failed === 0 && this.passed > 0 ? 0 : 1
  }
}

module.exports = { Checks, Failure, WAIT, expect, expectThat, until }
