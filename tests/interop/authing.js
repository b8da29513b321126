// The Authing stand-in: Express with express-xml-bodyparser, the parser of Authing's own
// wechat-official-account demo, with its defaults. Prints one JSON line once it listens, then one
// per request: what arrived (raw) and what the packages made of it (parsed, by JSON.stringify, which
// is also how the demo's axios writes the body it sends to Authing).
// Ends when stdin is closed. It answers like an identity provider nobody has documented: 200 and a small JSON body.
'use strict'

const express = require('express')
const xmlparser = require('express-xml-bodyparser')

const keepRaw = (req, _res, buffer) => { req.rawBody = buffer.toString('utf8') }

function application(report) {
  const app = express()
  app.use(express.json({ limit: '2mb', verify: keepRaw }))
  app.use(xmlparser())
  app.post('/{*path}', (req, res) => {
    report({
      path: req.path,
      search: req.originalUrl.includes('?') ? req.originalUrl.slice(req.originalUrl.indexOf('?') + 1) : null,
      headers: req.headers,
      raw: req.rawBody ?? null,
      parsed: JSON.stringify(req.body),
    })
    res.json({ code: 200, message: 'ok' })
  })
  app.use((err, _req, res, _next) => {
    report({ error: String(err.message), status: err.status ?? 500 })
    res.status(err.status ?? 500).json({ code: err.status ?? 500 })
  })
  return app
}

module.exports = { application }

if (require.main === module) {
  const print = (line) => process.stdout.write(JSON.stringify(line) + '\n')
  const server = application(print).listen(0, '127.0.0.1', () => print({ listening: server.address().port }))
  process.stdin.resume().on('end', () => process.exit(0))
}
