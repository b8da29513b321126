// A backend on co-wechat and Koa, as for WeChat itself: npm install co-wechat koa
const Koa = require('koa')
const wechat = require('co-wechat')

const { TOKEN, APP_ID, ENCODING_AES_KEY, PORT = 9100 } = process.env
const config = { token: TOKEN, appid: APP_ID, encodingAESKey: ENCODING_AES_KEY }

const app = new Koa()
app.use(wechat(config).middleware(async (message) => {
  if (message.MsgType === 'text') return `co-wechat: ${message.Content}`
  return '' // no reply
}))
app.listen(Number(PORT), '127.0.0.1')
