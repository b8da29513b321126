"""The expected forms of every push in tests/data/pushes:
  corpus.py            writes them
  corpus.py --check    fails when they differ from what is made anew

Nothing here is the relay's: `json`, `cloudevents` and the bodies of `wechat` are written from the words of the product's
contract (see README.md beside the pushes), and `authing-json` is what express-xml-bodyparser makes of the push (authing.js).
What differs from delivery to delivery stands as a word in capitals: EVENT_ID, ACCOUNT, APP_ID, MODE, RECEIVED_AT, ENCRYPT, ...
"""
import json
import re
import sys
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

from rig import Process, expect, expect_that

HERE = Path(__file__).resolve().parent
PUSHES = HERE.parent / "data" / "pushes"
EXPECTED = ".expected.json"
BLANKS = " \t\r\n\f"
TOKEN = re.compile(
    r"<!\[CDATA\[(?P<cdata>.*?)\]\]>|<!--.*?-->|<\?.*?\?>|</(?P<close>[^\s>]+)\s*>"
    r"|<(?P<open>[^\s/>]+)(?P<attributes>[^>]*?)(?P<empty>/?)>|(?P<text>[^<]+)", re.DOTALL)
ATTRIBUTE = re.compile(r"(\S+?)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
REFERENCE = re.compile(r"&(?:#x([0-9a-fA-F]+)|#([0-9]+)|(lt|gt|amp|quot|apos));")
ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}


@dataclass
class Element:
    name: str
    attributes: dict = field(default_factory=dict)
    texts: list = field(default_factory=list)  # (text, whether it is plain)
    children: list = field(default_factory=list)

    @property
    def text(self):
        """All texts joined; between elements, blanks outside CDATA sections are layout."""
        return "".join(text for text, plain in self.texts if not (self.children and plain and not text.strip(BLANKS)))

    def text_of(self, name):
        """The text of the first child of that name; empty where there is none."""
        return next((child.text for child in self.children if child.name == name), "")


def pushes():
    """The files of the corpus, in order."""
    files = [path for path in PUSHES.iterdir() if path.suffix in (".xml", ".json") and not path.name.endswith(EXPECTED)]
    expect_that(len(files) >= 100, f"only {len(files)} pushes in {PUSHES}")
    return sorted(files)


def read(text):
    """The tree of a push."""
    text = text.lstrip("\ufeff" + BLANKS)
    return read_xml(text) if is_xml(text) else read_json(text)


def is_xml(text):
    """By the first character: WeChat labels both `text/xml`."""
    return text.lstrip("\ufeff" + BLANKS).startswith("<")


def read_xml(text):
    top = Element("")
    path = [top]
    for token in TOKEN.finditer(text):
        if token["open"]:
            attributes = {name: unescape(double or single) for name, double, single in ATTRIBUTE.findall(token["attributes"])}
            element = Element(token["open"], attributes)
            path[-1].children.append(element)
            path += [] if token["empty"] else [element]
        elif token["close"]:
            expect(token["close"], path.pop().name, "name of the element that ends")
        elif token["cdata"] is not None:
            path[-1].texts.append((token["cdata"], False))
        elif token["text"]:
            path[-1].texts.append((unescape(token["text"]), True))
    expect((len(path), len(top.children)), (1, 1), "open elements and roots at the end")
    return top.children[0]


def unescape(text):
    def resolve(reference):
        hexadecimal, decimal, name = reference.groups()
        return ENTITIES[name] if name else chr(int(hexadecimal, 16) if hexadecimal else int(decimal))
    return REFERENCE.sub(resolve, text)


class Pairs(list):
    """An object's entries in order, repeated names included."""


def read_json(text):
    def add(element, name, value):
        items = value if type(value) is list and value else [None if value == [] and type(value) is list else value]
        for item in items:
            child = Element(name)
            element.children.append(child)
            fill(child, item)

    def fill(element, value):
        if isinstance(value, Pairs):
            for name, inner in value:
                add(element, name, inner)
        elif isinstance(value, list):
            add(element, "item", value)
        elif value is not None:
            element.texts.append(({True: "true", False: "false"}[value] if isinstance(value, bool) else value, False))

    root = Element("xml")
    # Numbers stay the digits that were sent.
    fill(root, json.loads(text, object_pairs_hook=Pairs, parse_int=str, parse_float=str))
    return root


def message(element):
    """Every element: texts as strings, repeated ones as an array, attributes as `$`, text beside either as `_`."""
    found = {}
    if element.attributes:
        found["$"] = element.attributes
    if element.text:
        found["_"] = element.text
    for child in element.children:
        value = message(child) if child.children or child.attributes else child.text
        found.setdefault(child.name, []).append(value)
    one = lambda values: values[0] if isinstance(values, list) and len(values) == 1 else values
    return {name: one(values) for name, values in found.items()}


def write_xml(element):
    """As WeChat writes it: texts in CDATA, numbers bare, a line end after each child."""
    text = element.text
    if not re.fullmatch(r"[0-9]+", text):
        text = "" if element.children and not text else "<![CDATA[" + text.replace("]]>", "]]]]><![CDATA[>") + "]]>"
    name = re.sub(r"^(?=[0-9.-])", "_", re.sub(r"[^\w.:-]", "_", element.name.strip(BLANKS)))
    return f"<{name}>{text}" + "".join(write_xml(child) + "\n" for child in element.children) + f"</{name}>"


def json_form(root, text):
    kind, event, key = root.text_of("MsgType"), root.text_of("Event"), root.text_of("EventKey")
    scene = None
    if kind.lower() == "event" and (event.lower() == "scan" or event.lower() == "subscribe" and key.startswith("qrscene_")):
        scene = key.removeprefix("qrscene_")
    created = root.text_of("CreateTime")
    return {
        "id": "EVENT_ID", "account": "ACCOUNT", "app_id": "APP_ID", "mode": "MODE", "received_at": "RECEIVED_AT",
        "to_user": root.text_of("ToUserName") or None, "from_user": root.text_of("FromUserName") or None,
        "create_time": int(created) if created else None, "msg_type": kind or None, "event": event or None,
        "event_key": key or None, "scene": scene or None, "message": message(root), "xml": text,
    }


def cloudevents_form(root):
    kind = ".".join(part for part in (root.text_of("MsgType") or "unknown", root.text_of("Event")) if part)
    openid = root.text_of("FromUserName")
    return {
        "specversion": "1.0", "id": "EVENT_ID", "source": "/accounts/ACCOUNT", "type": f"com.tencent.weixin.mp.{kind}",
        "time": "RECEIVED_AT", **({"subject": openid} if openid else {}), "datacontenttype": "application/json",
        "data": message(root),
    }


def wechat_form(root, clear):
    """The envelope around the encrypted text; in plaintext mode the body is the push itself."""
    to_user, openid = root.text_of("ToUserName").strip(BLANKS), root.text_of("FromUserName")
    sealed = "<Encrypt><![CDATA[ENCRYPT]]></Encrypt>\n"
    if is_xml(clear):
        secure = "<xml>" + (f"<ToUserName><![CDATA[{to_user}]]></ToUserName>\n" if to_user else "") + sealed + "</xml>"
        compatible = clear.rstrip(BLANKS).removesuffix("</xml>") + sealed + "</xml>"
    else:
        secure = compact(({"ToUserName": to_user} if to_user else {}) | {"Encrypt": "ENCRYPT"})
        compatible = clear.rstrip(BLANKS).removesuffix("}") + ',"Encrypt":"ENCRYPT"}'
    query = "signature=SIGNATURE&timestamp=TIMESTAMP&nonce=NONCE" + (f"&openid={quote(openid, safe='')}" if openid else "")
    return {
        "plaintext_query": query, "sealed_query": query + "&encrypt_type=aes&msg_signature=MSG_SIGNATURE",
        "secure_body": secure.split("\n"), "compatible_body": compatible.split("\n"),
    }


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Parser:
    """express-xml-bodyparser, by the stand-in of authing.js."""

    def __enter__(self):
        self.process = Process("express-xml-bodyparser", ["node", str(HERE / "authing.js")])
        self.connection = HTTPConnection("127.0.0.1", self.process.port(), timeout=15)
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.process.end()

    def parse(self, text):
        mark = self.process.mark()
        self.connection.request("POST", "/", text.encode(), {"content-type": "text/xml"})
        self.connection.getresponse().read()
        seen = self.process.wait_for(lambda _: True, "parsed push", since=mark)[0]
        expect_that("parsed" in seen, f"the package could not read it: {seen}")
        return seen["parsed"]


def expected(path, parser):
    """The text of a push's file of expectations."""
    clear = path.read_bytes().decode()
    expect(path.suffix, ".xml" if is_xml(clear) else ".json", f"{path.name}: ending")
    root = read(clear)
    text = clear if is_xml(clear) else write_xml(root)
    parsed = parser.parse(text)
    forms = {
        "json": json_form(root, text), "cloudevents": cloudevents_form(root), "authing-json": json.loads(parsed),
        "wechat": wechat_form(root, clear),
    }
    # The tests compare bytes with what is read from the file, so nothing may be lost on the way into it.
    expect(compact(forms["authing-json"]), parsed, f"{path.name}: authing-json, written again")
    pretty = json.dumps(forms, ensure_ascii=False, indent=1) + "\n"
    return re.sub(r'\[\n +("(?:[^"\\\n]|\\.)*")\n +\]', r"[\1]", pretty)  # a list of one text on one line


def check():
    """Every push has its expectations, they equal what is generated, and there are no others."""
    differing, files = [], pushes()
    with Parser() as parser:
        for path in files:
            kept = path.with_suffix(EXPECTED)
            if not kept.is_file() or kept.read_text() != expected(path, parser):
                differing.append(path.name)
    names = {path.with_suffix(EXPECTED).name for path in files}
    differing += sorted({path.name for path in PUSHES.glob(f"*{EXPECTED}")} - names)
    expect(differing, [], "pushes whose expectations are not what corpus.py makes")
    return f"{len(files)} pushes"


def write():
    with Parser() as parser:
        for path in pushes():
            path.with_suffix(EXPECTED).write_text(expected(path, parser))
    print("written; `git diff` shows what changed")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        print(check())
    else:
        write()
