// A server URL in the manner of an identity provider's sample for Mode 2: decrypt, answer, forward and forget.
// It checks no signature, stores nothing and tries nothing twice. Only what Node itself has.
// usage: node mode2.mjs PORT HANDLER_URL ENCODING_AES_KEY [CERT KEY]
import { createDecipheriv } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";

const [port, handler, encodingAesKey, cert, key] = process.argv.slice(2);
const aesKey = Buffer.from(`${encodingAesKey}=`, "base64");
const agent = new http.Agent({ keepAlive: true });

function decrypt(sealed) {
  const cipher = createDecipheriv("aes-256-cbc", aesKey, aesKey.subarray(0, 16));
  cipher.setAutoPadding(false);
  const data = Buffer.concat([cipher.update(sealed, "base64"), cipher.final()]);
  const length = data.readUInt32BE(16);
  return data.subarray(20, 20 + length).toString();
}

function elements(xml) {
  const found = {};
  for (const [, name, cdata, text] of xml.matchAll(/<(\w+)>(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))<\/\1>/gs)) {
    found[name.toLowerCase()] = [(cdata ?? text).trim()];
  }
  return found;
}

function forward(message) {
  const body = JSON.stringify({ xml: message });
  const headers = { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) };
  const request = http.request(handler, { method: "POST", agent, headers }, (response) => response.resume());
  request.on("error", () => {});
  request.end(body);
}

function answer(request, response) {
  let body = "";
  request.setEncoding("utf8");
  request.on("data", (chunk) => { body += chunk; });
  request.on("end", () => {
    const outer = elements(body.slice(5, -6));
    elements(decrypt(outer.encrypt[0]));
    forward(outer);
    response.end("success");
  });
}

const server = cert
  ? https.createServer({ cert: readFileSync(cert), key: readFileSync(key) }, answer)
  : http.createServer(answer);
server.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
