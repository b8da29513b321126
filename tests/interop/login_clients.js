// Sites that log their users in by WeChat, each with a library of npm as its users use it: NAME CERT KEY PORTS.
//
// Prints `{"port": N}`. `/login` begins a login; its end answers `hello OPENID`, or 403 with `refused`. PORTS is JSON: the
// port of this machine behind each name, which is what DNS does elsewhere.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const https = require('node:https');
const net = require('node:net');
const tls = require('node:tls');

const [name, cert, key, ports] = process.argv.slice(2);
const APP_ID = 'wx0123456789abcdef';
const SECRET = '0123456789abcdef0123456789abcdef';
const CALLBACK = `https://login.example.com/login/${name}`;

resolve(JSON.parse(ports));

const sites = { cowechat, authjs };
sites[name]().then((handler) => {
  const options = { cert: fs.readFileSync(cert), key: fs.readFileSync(key) };
  const server = https.createServer(options, (request, response) => {
    handler(request, new URL(request.url, `https://${name}.example.com`), response).catch((error) => {
      response.writeHead(403, { 'content-type': 'text/html' }).end(`refused ${error.name}`);
    });
  });
  server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port })));
});

// Leads connections to a known name to its port.
function resolve(known) {
  for (const module of [net, tls]) {
    const connect = module.connect;
    module.connect = (options, ...rest) => {
      const port = known[options.host ?? options.hostname];
      const there = port ? { ...options, servername: options.servername || options.host, host: '127.0.0.1', hostname: '127.0.0.1', port } : options;
      return connect(there, ...rest);
    };
  }
}

// co-wechat-oauth as its README shows it, with a state in a cookie.
async function cowechat() {
  const OAuth = require('co-wechat-oauth');
  const oauth = new OAuth(APP_ID, SECRET);
  return async (request, url, response) => {
    if (url.pathname === '/login') {
      const state = crypto.randomBytes(16).toString('hex');
      response.writeHead(302, {
        'set-cookie': `state=${state}; Secure; HttpOnly; SameSite=Lax; Path=/`,
        location: oauth.getAuthorizeURLForWebsite(CALLBACK, state),
      }).end();
      return;
    }
    const kept = /(?:^|; )state=([0-9a-f]+)/.exec(request.headers.cookie ?? '')?.[1];
    if (!kept || kept !== url.searchParams.get('state')) throw new Error('state');
    const { data } = await oauth.getAccessToken(url.searchParams.get('code'));
    response.writeHead(200, { 'content-type': 'text/html', 'set-cookie': 'state=; Max-Age=0; Path=/' });
    response.end(`<!doctype html><p>hello ${data.openid}</p><img src="https://third.example.com/pixel" alt="">`);
  };
}

// @auth/core with its own provider `wechat`; redirect_uri is one parameter of its authorization.
async function authjs() {
  const { Auth, skipCSRFCheck } = await import('@auth/core');
  const { default: WeChat } = await import('@auth/core/providers/wechat');
  const provider = WeChat({ clientId: APP_ID, clientSecret: SECRET, platformType: 'WebsiteApp' });
  provider.authorization.params.redirect_uri = CALLBACK;
  const config = {
    providers: [provider], secret: crypto.randomBytes(32).toString('hex'), trustHost: true, basePath: '/auth', skipCSRFCheck,
    logger: { error() {}, warn() {}, debug() {} },
  };
  const auth = (url, request, init = {}) =>
    Auth(new Request(url, { ...init, headers: { cookie: request.headers.cookie ?? '', ...init.headers } }), config);
  return async (request, url, response) => {
    let answer;
    if (url.pathname === '/login') {
      const headers = { 'content-type': 'application/x-www-form-urlencoded' };
      answer = await auth(`${url.origin}/auth/signin/wechat`, request, { method: 'POST', headers, body: `callbackUrl=${url.origin}/me` });
    } else if (url.pathname.startsWith('/auth/callback/')) {
      answer = await auth(url.href, request);
    } else {
      const session = await (await auth(`${url.origin}/auth/session`, request)).json();
      if (url.pathname !== '/me' || !session?.user) throw new Error('session');
      response.writeHead(200, { 'content-type': 'text/html' }).end(`hello ${session.user.name}`);
      return;
    }
    response.writeHead(answer.status, { location: answer.headers.get('location') ?? '', 'set-cookie': answer.headers.getSetCookie() }).end();
  };
}
