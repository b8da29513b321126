// main.js BINARY [TOPIC...]: the checks of the topics, or `screens` and `cost`, which are none.
'use strict'

const { Checks } = require('./checks.js')

const TOPICS = ['night', 'search', 'keys', 'live', 'look', 'fence', 'hostile']
const EXTRA = ['screens', 'cost']

async function main([binary, ...wanted]) {
  const unknown = wanted.filter((topic) => ![...TOPICS, ...EXTRA].includes(topic))
  if (!binary || unknown.length) {
    console.error(`no topic is called '${unknown}'; there are: ${[...TOPICS, ...EXTRA].join(', ')}`)
    return 2
  }
  const checks = new Checks()
  for (const topic of wanted.length ? wanted : TOPICS) {
    for (const [name, check] of require(`./${topic}.js`)(binary)) await checks.run(name, check)
  }
  return checks.close()
}

main(process.argv.slice(2)).then((code) => process.exit(code))
