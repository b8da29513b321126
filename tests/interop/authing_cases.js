// Makes tests/data/authing/cases.json, the golden data of the `authing-json` format:
//   node authing_cases.js            writes it
//   node authing_cases.js --check    fails when the installed packages no longer agree with it
// Each document is posted as text/xml over a socket to the stand-in of authing.js; what
// express-xml-bodyparser makes of it, in JSON.stringify's bytes, is the expectation. Nothing here is
// written by hand but the documents. All of them are documents the relay has to read; what
// it refuses (DOCTYPE, broken XML) has no place here.
'use strict'

const fs = require('node:fs')
const http = require('node:http')
const path = require('node:path')
const { application } = require('./authing.js')

const file = path.join(__dirname, '..', 'data', 'authing', 'cases.json')
const B64 = 'hyzAe4OzmOMbd6TvGdIOO6uBmdJoD0Fk53REIHvxYtJlE2B655HuD0m8KUePWB3+LrPXo87wzQ1QLvbeUgmBM4x6F8PGHQHFVAFmOD2LdJF9FrXpbUAh0B5GIItb52sn896wVsMSHGuPE328HnRGBcrS7C41IzDWyWNlZkyyXwon8T332jisa+h6tEDYsVticbSnyU8dKOIbgU6ux5VTjg3yt+WGzjlpKn6NPhRjpA912xMezR4kw6KWwMrCVKSVCZciVGCgavjIQ6X8tCOp3yZbGpy0VxpAe+77TszTfRd5RJSVO/HTnifJpXgCSUdUue1v6h0EIBYYI1BD1DlD+C0CR8e6OewpusjZ4uBl9FyJvnhvQl+q5rv1ixrcpCumEPo5MJSgM9ehVsNPfUM669WuMyVWQLCzpu9GhglF2PE='
const TO = '<ToUserName><![CDATA[gh_7f083739789a]]></ToUserName>'
const FROM = '<FromUserName><![CDATA[oia2TjuEGTNoeX76QEjQNrcURxG8]]></FromUserName>'
const event = (inner) => `<xml>${TO}\n${FROM}\n<CreateTime>1395658920</CreateTime>\n<MsgType><![CDATA[event]]></MsgType>\n${inner}\n</xml>`
const text = (content) => `<xml>${TO}\n${FROM}\n<CreateTime>1414387151</CreateTime>\n<MsgType><![CDATA[text]]></MsgType>\n<Content>${content}</Content>\n<MsgId>6074130599188426998</MsgId>\n</xml>`
const bare = (inner) => `<xml>${inner}</xml>`

const documents = [
  // What WeChat sends.
  ['secure push', `<xml>\n    ${TO}\n    <Encrypt><![CDATA[${B64}]]></Encrypt>\n</xml>`],
  ['secure push without blanks', `<xml>${TO}<Encrypt><![CDATA[${B64}]]></Encrypt></xml>`],
  ['compatible push', `<xml>${TO}\n${FROM}\n<CreateTime>1414387151</CreateTime>\n<MsgType><![CDATA[text]]></MsgType>\n<Content><![CDATA[abcdteT]]></Content>\n<MsgId>6074130599188426998</MsgId>\n<Encrypt><![CDATA[${B64}]]></Encrypt>\n</xml>`],
  ['plaintext SCAN', `<xml>${TO}\n${FROM}\n<CreateTime>1670591703</CreateTime>\n<MsgType><![CDATA[event]]></MsgType>\n<Event><![CDATA[SCAN]]></Event>\n<EventKey><![CDATA[110]]></EventKey>\n<Ticket><![CDATA[gQE28DwAAAAAAAAAAS5odHRwOi8vd2VpeGluLnFxLmNvbS9xLzAyWmN]]></Ticket>\n</xml>`],
  ['subscribe with an empty EventKey', event('<Event><![CDATA[subscribe]]></Event>\n<EventKey><![CDATA[]]></EventKey>')],
  ['subscribe with a scene', event('<Event><![CDATA[subscribe]]></Event>\n<EventKey><![CDATA[qrscene_login_7]]></EventKey>\n<Ticket><![CDATA[TICKET]]></Ticket>')],
  ['unsubscribe without EventKey', event('<Event><![CDATA[unsubscribe]]></Event>')],
  ['text', text('<![CDATA[this is a test]]>')],
  ['nested SendPicsInfo', event('<Event><![CDATA[pic_weixin]]></Event>\n<EventKey><![CDATA[6]]></EventKey>\n<SendPicsInfo><Count>2</Count>\n<PicList><item><PicMd5Sum><![CDATA[1b5f7c23b5bf75682a53e7b6d163e185]]></PicMd5Sum>\n</item>\n<item><PicMd5Sum><![CDATA[b]]></PicMd5Sum>\n</item>\n</PicList>\n</SendPicsInfo>')],
  ['ScanCodeInfo', event('<Event><![CDATA[scancode_waitmsg]]></Event>\n<EventKey><![CDATA[6]]></EventKey>\n<ScanCodeInfo><ScanType><![CDATA[qrcode]]></ScanType>\n<ScanResult><![CDATA[http://weixin.qq.com/r/x?a=1&b=2]]></ScanResult>\n</ScanCodeInfo>')],
  ['SendLocationInfo with empty elements', event('<Event><![CDATA[location_select]]></Event>\n<SendLocationInfo><Location_X><![CDATA[23]]></Location_X>\n<Location_Y><![CDATA[113]]></Location_Y>\n<Label><![CDATA[ 广州市海珠区客村艺苑路 106号]]></Label>\n<Poiname><![CDATA[]]></Poiname>\n</SendLocationInfo>')],
  ['repeated List elements', event('<Event><![CDATA[subscribe_msg_popup_event]]></Event>\n<SubscribeMsgPopupEvent>\n<List><TemplateId><![CDATA[VRR0UEO9VJOLs0MHlU0OilqX6MVFDwH3_3gz3Oc0NIc]]></TemplateId>\n<SubscribeStatusString><![CDATA[accept]]></SubscribeStatusString>\n<PopupScene>2</PopupScene>\n</List>\n<List><TemplateId><![CDATA[9nLIlbOQZC5Y89AZteFEux3WCXRRRG5Wfzkpssu4bLI]]></TemplateId>\n<SubscribeStatusString><![CDATA[reject]]></SubscribeStatusString>\n<PopupScene>2</PopupScene>\n</List>\n</SubscribeMsgPopupEvent>')],
  ['MASSSENDJOBFINISH with ResultList', event('<Event><![CDATA[MASSSENDJOBFINISH]]></Event>\n<MsgID>1000001625</MsgID>\n<Status><![CDATA[err(30003)]]></Status>\n<CopyrightCheckResult><Count>2</Count>\n<ResultList><item><ArticleIdx>1</ArticleIdx>\n<UserDeclareState>0</UserDeclareState>\n</item>\n<item><ArticleIdx>2</ArticleIdx>\n</item>\n</ResultList>\n</CopyrightCheckResult>')],
  ['TEMPLATESENDJOBFINISH', event('<Event><![CDATA[TEMPLATESENDJOBFINISH]]></Event>\n<MsgID>200163840</MsgID>\n<Status><![CDATA[failed: user block]]></Status>')],
  ['emoji and Chinese', text('<![CDATA[你好 😀👨‍👩‍👧 /::)]]>')],
  // White space: normalize and trim.
  ['inner blank runs collapse', text('<![CDATA[  a  b   c\t\td \n\n e  ]]>')],
  ['a single inner tab and line feed stay', text('<![CDATA[a\tb\nc d]]>')],
  ['blank-only text is kept as it is', text('   ')],
  ['blank-only text with line feeds', text('\n\t \n')],
  ['blank-only CDATA becomes empty', text('<![CDATA[   ]]>')],
  ['blank-only CDATA between blanks', text(' <![CDATA[ ]]> ')],
  ['blanks around CDATA', text('\n  <![CDATA[ab]]>\n  ')],
  ['CRLF', `<xml>\r\n${TO}\r\n<Content><![CDATA[a\r\nb\r\n\r\nc]]></Content>\r\n<A>x\r\ny</A>\r\n<B>\r\n</B>\r\n</xml>\r\n`],
  ['lone CR', bare('<A>a\rb</A><B>\r</B>')],
  ['NBSP is a blank', text('<![CDATA[\u00a0a\u00a0\u00a0b\u00a0c\u00a0]]>')],
  ['NBSP only', text('\u00a0')],
  ['ideographic space is a blank', text('<![CDATA[\u3000你\u3000\u3000好\u3000]]>')],
  ['line and paragraph separators are blanks', text('<![CDATA[\u2028a\u2028\u2029b\u2028c\u2029]]>')],
  ['BOM in text is a blank', text('<![CDATA[\ufeffa\ufeff\ufeffb\ufeff]]>')],
  ['next line U+0085 is no blank', text('<![CDATA[\u0085a\u0085\u0085b\u0085]]>')],
  ['next line U+0085 only', text('\u0085')],
  ['zero width space is no blank', text('<![CDATA[\u200ba\u200b\u200bb\u200b]]>')],
  ['Mongolian vowel separator is no blank', text('<![CDATA[\u180ea\u180e\u180eb\u180e]]>')],
  ['every other Unicode space is a blank', text('<![CDATA[a\u1680\u1680b\u2000\u2001c\u2002\u2003d\u2004\u2005e\u2006\u2007f\u2008\u2009g\u200a\u202fh\u205f\u205fi]]>')],
  ['vertical tab and form feed are blanks', text('<![CDATA[\va\v\fb\fc\f]]>')],
  // Characters and JSON's escapes.
  ['control characters survive', text('<![CDATA[a\u0001b\u0007c\bd\u000be\u001ff]]>')],
  ['only a control character', text('\u0001')],
  ['delete and C1 controls are not escaped', text('<![CDATA[a\u007fb\u0080c\u009fd]]>')],
  ['quote, backslash and slash', text('<![CDATA["a\\b/c\'<>&]]>')],
  ['noncharacters', text('<![CDATA[a\ufffeb\uffffc]]>')],
  ['replacement character', text('<![CDATA[a\ufffdb]]>')],
  ['predefined entities', text('a &lt;b&gt; &amp; &quot;c&quot; &apos;d&apos; &amp;amp;')],
  ['character references', text('&#65;&#x42;&#x1F600;&#20320;&#x4f60;')],
  ['references to blanks are trimmed too', text('&#32;&#9;a&#32;&#32;b&#10;&#160;')],
  ['only a reference to a blank', text('&#32;')],
  ['entities are not read in CDATA', text('<![CDATA[&lt;&amp;&#65;]]>')],
  ['split CDATA', text('<![CDATA[a]]]]><![CDATA[>b]]>')],
  ['text and CDATA mixed', text('a <![CDATA[ b ]]> c')],
  ['greater-than sign in text', text('a > b')],
  ['brackets at the end of CDATA', text('<![CDATA[a]]]]>')],
  // Shapes.
  ['prolog', `<?xml version="1.0" encoding="UTF-8"?>\n${bare('<A>1</A>')}`],
  ['BOM before the root', `\ufeff${bare('<A>1</A>')}`],
  ['BOM before the prolog', `\ufeff<?xml version="1.0"?>${bare('<A>1</A>')}`],
  ['blanks around the root', `  \n${bare('<A>1</A>')}\n  `],
  ['comments and processing instructions', bare('<!-- c --><A>a<!-- c -->b</A><?pi x?><B><!-- only --></B><C> <!-- c --> </C>')],
  ['comment after the root', `${bare('<A>1</A>')}<!-- end -->`],
  ['empty root', '<xml></xml>'],
  ['self-closing root', '<xml/>'],
  ['blank root', '<xml>\n  </xml>'],
  ['root with text', '<xml> a  b </xml>'],
  ['root with CDATA', '<xml><![CDATA[ a ]]></xml>'],
  ['root of another name', '<Message><A>1</A></Message>'],
  ['self-closing elements', bare('<A/><B /><C></C>')],
  ['names are lower-cased and merge', bare('<Item>1</Item><B>x</B><ITEM>2</ITEM><item>3</item>')],
  ['repeats keep the first place', bare('<A>1</A><B>2</B><A>3</A><C>4</C><B/>')],
  ['repeats of mixed kinds', bare('<A>1</A><A><B>2</B></A><A/><A> </A><A x="1"/>')],
  ['names with digits, dots, dashes and colons', bare('<n1>a</n1><_2>b</_2><a.b>c</a.b><a-b>d</a-b><wx:Name>e</wx:Name>')],
  ['number-like names keep their order', bare('<_10>a</_10><_9>b</_9><N10>c</N10><N9>d</N9>')],
  ['Chinese names', bare('<姓名>张三</姓名>')],
  ['Unicode names are lower-cased', bare('<ÀÉ>1</ÀÉ><àé>2</àé><ΑΣ>3</ΑΣ>')],
  ['attributes of the root', '<xml Version="1.0" a=\'b\'><A>1</A></xml>'],
  ['attributes keep case and order', bare('<A Zed="1" alpha="2" BETA="3">x</A>')],
  ['attribute without content', bare('<A id="1"/><B id="2"></B><C id="3"> </C>')],
  ['attribute and blank CDATA', bare('<A id="1"><![CDATA[ ]]></A>')],
  ['attribute values are left alone', bare('<A v="  a  b &lt;&amp;&quot;&#65; 你 "/>')],
  ['empty attribute', bare('<A v="">x</A>')],
  ['attribute, text and children', bare('<A id="1"> t  u <B>1</B> v </A>')],
  ['namespace declarations are attributes', '<xml xmlns="urn:a" xmlns:b="urn:b"><b:A>1</b:A></xml>'],
  ['mixed text and children', bare('<A> x  <B>1</B>  y <B>2</B></A>')],
  ['text of the root beside children', '<xml>top<A>1</A>tail</xml>'],
  ['blank CDATA beside children', bare('<A><![CDATA[ ]]><B>1</B></A>')],
  ['empty CDATA beside children', bare('<A><![CDATA[]]><B>1</B></A>')],
  ['deep nesting', bare('<A><B><C><D><E><F>x</F></E></D></C></B></A>')],
  ['names the parser itself uses', bare('<A><B>1</B></A><name>n</name><cdata>c</cdata><length>3</length>')],
  ['long text', text(`<![CDATA[${'长 text  '.repeat(200)}]]>`)],
]

function post(port, xml) {
  return new Promise((resolve, reject) => {
    const body = Buffer.from(xml, 'utf8')
    const headers = { 'content-type': 'text/xml', 'content-length': body.length, connection: 'close' }
    const request = http.request({ host: '127.0.0.1', port, path: '/', method: 'POST', headers }, (response) => {
      response.resume()
      response.on('end', () => resolve(response.statusCode))
    })
    request.on('error', reject)
    request.end(body)
  })
}

async function main() {
  let seen = null
  const server = application((line) => { seen = line }).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.on('listening', resolve))
  const cases = []
  for (const [name, xml] of documents) {
    seen = null
    const status = await post(server.address().port, xml)
    if (status !== 200) throw new Error(`${name}: ${status} ${JSON.stringify(seen)}`)
    cases.push({ name, xml, json: seen.parsed })
  }
  server.close()
  const made = JSON.stringify(cases, null, 1) + '\n'
  if (process.argv[2] === '--check') {
    const kept = fs.readFileSync(file, 'utf8')
    if (kept !== made) {
      const differing = JSON.parse(kept).filter((one, at) => JSON.stringify(one) !== JSON.stringify(cases[at]))
      throw new Error(`cases.json differs from what the packages make: ${differing.map((one) => one.name).join(', ')}`)
    }
    console.log(`${cases.length} cases agree`)
  } else {
    fs.mkdirSync(path.dirname(file), { recursive: true })
    fs.writeFileSync(file, made)
    console.log(`${cases.length} cases written`)
  }
}

main().catch((error) => {
  console.error(error.message)
  process.exit(1)
})
