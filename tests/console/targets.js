// Stand-ins for targets, on ports that the system chooses: one that breaks and is mended on command.
'use strict'

const { execFileSync } = require('node:child_process')
const fs = require('node:fs')
const http = require('node:http')
const https = require('node:https')
const path = require('node:path')

/** A handler that answers 204, or what `breaks` was told. */
class Target {
  constructor(name) {
    this.name = name
    this.got = 0
    this.answer = null
  }

  async listen(tls) {
    const handle = (request, response) => {
      request.resume()
      request.on('end', () => {
        this.got += 1
        const { status, text, headers } = this.answer ?? { status: 204, text: '', headers: {} }
        response.writeHead(status, headers)
        response.end(text)
      })
    }
    this.server = tls ? https.createServer(tls, handle) : http.createServer(handle)
    await new Promise((resolve) => this.server.listen(0, '127.0.0.1', resolve))
    this.url = `${tls ? 'https' : 'http'}://127.0.0.1:${this.server.address().port}/`
    return this
  }

  breaks(status = 500, text = 'upstream timed out', headers = { 'content-type': 'text/plain' }) {
    this.answer = { status, text, headers }
  }

  mend() {
    this.answer = null
  }

  end() {
    this.server.closeAllConnections()
    this.server.close()
  }
}

/** A certificate and its key whose every name holds `text`, made by openssl in `folder`; nobody trusts it. */
function certificate(folder, text) {
  const [cert, key, config] = ['cert.pem', 'key.pem', 'openssl.cnf'].map((name) => path.join(folder, name))
  const field = text.replace(/[\\$#"]/g, '').slice(0, 60)
  fs.writeFileSync(config, `[req]\nprompt = no\ndistinguished_name = name\nstring_mask = utf8only\nutf8 = yes\nx509_extensions = more\n` +
    `[name]\nCN = "${field}"\nO = "${field}"\n[more]\nsubjectAltName = DNS:evil.example\n`)
  const command = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
  execFileSync('openssl', [...command, '-config', config, '-keyout', key, '-out', cert], { stdio: 'pipe' })
  return { cert: fs.readFileSync(cert), key: fs.readFileSync(key) }
}

module.exports = { Target, certificate }
