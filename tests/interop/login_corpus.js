// PORT PATH TO COUNT SEED [tls]: asks for COUNT random logins, and looks where a browser would go: WHATWG's URL reads each
// Location. Prints `{"asked", "redirects", "elsewhere", "examples"}`.
'use strict';

const http = require('node:http');
const https = require('node:https');

const [port, path, to, count, seed, secure] = process.argv.slice(2);
const client = secure ? https : http;
const wanted = new URL(to);
let random = Number(seed);

// Mulberry32: the same queries for the same seed.
function below(limit) {
  random = (random + 0x6d2b79f5) | 0;
  let t = Math.imul(random ^ (random >>> 15), 1 | random);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) % limit;
}

const KEYS = ['code', 'state', 'redirect_uri', 'redirect', 'url', 'to', 'next', 'c%6fde', 'Code', 'code[]', 'state ', '%00code', 'appid', ''];
const VALUES = [
  'abc', '0a1B', '', 'https://evil.example/', '//evil.example', '\\\\evil.example', '/\\evil.example', 'javascript:alert(1)', '@evil.example',
  '%2f%2fevil.example', '%0d%0aLocation:%20https://evil.example', '%0aSet-Cookie:a', '..%2f..%2f', '/../../x', '?x', ';code=x', '+', '%', '%zz', '%00',
  '%e4%b8%ad', 'a=b', "'\"<>", '[]{}|^`', '.evil.example', ':443', '~!$*(),',
];
const pick = (list) => list[below(list.length)];

function query() {
  const pairs = [];
  for (let left = 1 + below(5); left > 0; left -= 1) {
    let value = '';
    for (let parts = 1 + below(3); parts > 0; parts -= 1) value += pick(VALUES);
    pairs.push(below(9) === 0 ? pick(KEYS) : `${below(2) ? pick(['code', 'state']) : pick(KEYS)}=${below(3) ? pick(['abc', '0a1B']) : value}`);
  }
  return pairs.join(pick(['&', '&', '&', '&&', ';', '&amp;']));
}

const agent = new client.Agent({ keepAlive: true, maxSockets: 16 });
const found = { asked: 0, redirects: 0, elsewhere: 0, examples: [] };

function ask(text) {
  return new Promise((resolve, reject) => {
    // Written as it is: a client that encodes would hide what a browser of an attacker sends.
    const request = client.request({ port, host: '127.0.0.1', servername: 'login.example.com', agent, path: encodeURI(`${path}?${text}`).replaceAll('%25', '%') }, (response) => {
      response.resume().on('end', () => resolve(response));
    });
    request.on('error', reject).end();
  });
}

async function worker() {
  while (found.asked < Number(count)) {
    found.asked += 1;
    const text = query();
    const { statusCode, headers } = await ask(text);
    if (statusCode < 300 || statusCode > 399) continue;
    found.redirects += 1;
    let there;
    try {
      there = new URL(headers.location, `http://127.0.0.1:${port}${path}`);
    } catch {
      there = {};
    }
    const once = (key) => (there.searchParams?.getAll(key).length ?? 2) <= 1;
    if (there.origin !== wanted.origin || there.pathname !== wanted.pathname || there.username || there.hash || !once('code') || !once('state')) {
      found.elsewhere += 1;
      if (found.examples.length < 3) found.examples.push([text, headers.location]);
    }
  }
}

Promise.all(Array.from({ length: 16 }, worker)).then(() => {
  agent.destroy();
  console.log(JSON.stringify(found));
});
