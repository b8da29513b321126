// A backend on wechat and Express, as for WeChat itself: npm install wechat express
const express = require('express')
const wechat = require('wechat')

const { TOKEN, APP_ID, ENCODING_AES_KEY, PORT = 9100 } = process.env
const config = ENCODING_AES_KEY ? { token: TOKEN, appid: APP_ID, encodingAESKey: ENCODING_AES_KEY } : TOKEN

const app = express()
app.use('/wx', wechat(config, (req, res) => {
  const message = req.weixin
  if (message.MsgType === 'text') return res.reply(`wechat: ${message.Content}`)
  res.reply('') // no reply
}))
app.listen(Number(PORT), '127.0.0.1')
