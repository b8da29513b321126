//! Every known attack on the protocol, in every mode: each is refused with its status and stores nothing. All answers
//! of one status have the same bytes.
//!
//! All accounts share token and key, which is the attacker's best case: only the AppID differs. `statuses.rs` tests
//! each status by its cause; the many attempts here must get identical answers.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::http::{Answer, exchange};
use crate::support::relay::Relay;
use crate::support::target::Target;
use crate::support::wechat::{GH, Mode, Push, WeChat, element, now, parameter, sign, text};

const MODES: [Mode; 3] = [Mode::Plaintext, Mode::Compatible, Mode::Secure];
const ECHO: &str = "4375120948345356249";
const OTHER: &str = "/other";

#[tokio::test]
async fn every_known_forgery_is_refused_with_one_answer_and_leaves_nothing() {
    let crm = Target::start().await;
    let mut config = crm.config("crm", "");
    let twin = WeChat { app_id: "wxthetwin000000000".to_owned(), ..of(Mode::Secure) };
    for (mode, name) in MODES.iter().zip(["p", "c", "s"]) {
        config = of(*mode).account_named(name, path(*mode)) + &config;
    }
    let stranger = WeChat { token: "anothertoken".to_owned(), ..twin.clone() };
    config = twin.account_named("twin", "/twin") + &stranger.account_named("other", OTHER) + &config;
    let relay = Relay::start(config).await;

    let mut tries = Vec::new();
    for mode in MODES {
        tries.extend(signatures(mode));
        tries.extend(queries(mode));
        tries.extend(modes(mode));
        tries.extend(replays(mode));
        if mode != Mode::Plaintext {
            tries.extend(cuts(mode));
            tries.extend(bodies(mode));
            tries.extend(envelopes(mode));
        }
    }
    let mut good = 0;
    let mut answers: BTreeMap<u16, BTreeSet<Vec<String>>> = BTreeMap::new();
    let mut counts: BTreeMap<(&str, u16), usize> = BTreeMap::new();
    for ForgedRequest { mode, what, status, request } in &tries {
        let answer = exchange(&relay.push, request).await;
        assert_eq!(answer.status, *status, "{mode:?}: {what}: {}", answer.text());
        if *status == 200 {
            good += 1;
            continue;
        }
        assert!(!answer.text().contains(ECHO), "{mode:?}: {what}");
        answers.entry(*status).or_default().insert(shown(&answer));
        *counts.entry((mode.name(), *status)).or_default() += 1;
    }
    assert_eq!(answers.keys().collect::<Vec<_>>(), [&400, &403]);
    for (status, answers) in &answers {
        assert_eq!(answers.len(), 1, "one answer for all that is {status}: {answers:#?}");
    }
    // One push per mode was valid, in two notations; no other was stored.
    assert_eq!(good, 2 * MODES.len());
    let audit = relay.audited("delivered", MODES.len() as u64).await;
    assert_eq!(audit["events"], MODES.len(), "{audit}");
    assert_eq!(crm.deliveries().len(), MODES.len());
    let bad: usize = counts.values().sum();
    println!("{bad} bad inputs: {counts:?}");
    assert!(bad > 1500, "only {bad}");
}

#[tokio::test]
async fn clear_elements_beside_a_sealed_text_change_nothing_of_the_event() {
    let (wechat, crm) = (of(Mode::Compatible), Target::start().await);
    let relay = Relay::start(wechat.account_named("c", "/c") + &crm.config("crm", "")).await;
    let clear = text("o_true", "true");
    let names = ["ToUserName", "FromUserName", "CreateTime", "MsgType", "Content", "MsgId"];
    for (index, name) in names.iter().enumerate() {
        let clear = clear.replace("[true]]", &format!("[true {index}]]"));
        let push = wechat.push(&clear);
        let body = String::from_utf8(push.body).expect("UTF-8");
        let value = element(&clear, name).expect("every text message has it");
        // Another value, a second element before and after, none at all, and one that was never sent.
        let forged = [
            body.replacen(&value, "forged", 1),
            body.replacen("<xml>", &format!("<xml><{name}>forged</{name}>"), 1),
            body.replacen("</xml>", &format!("<{name}>forged</{name}></xml>"), 1),
            body.replacen("</xml>", "<Event>subscribe</Event><EventKey>forged</EventKey></xml>", 1),
        ];
        for (index, body) in forged.iter().enumerate() {
            let push = Push { query: push.query.clone(), body: body.clone().into_bytes() };
            let answer = exchange(&relay.push, &push.request("/c")).await;
            // `ToUserName`, which other modes compare, may occur only once.
            let expected = if *name == "ToUserName" && [1, 2].contains(&index) { 400 } else { 200 };
            assert_eq!(answer.status, expected, "{name}: {body}");
        }
        let json = crm.delivery(index).await.json();
        assert_eq!(json["xml"], clear.as_str(), "{name}");
        assert_eq!((&json["event"], json.to_string().contains("forged")), (&serde_json::Value::Null, false), "{json}");
    }
    assert_eq!(relay.audited("delivered", names.len() as u64).await["events"], names.len(), "one event each");
}

/// A request, and the status that it must get.
struct ForgedRequest {
    mode: Mode,
    what: String,
    status: u16,
    request: Vec<u8>,
}

impl ForgedRequest {
    fn post(mode: Mode, what: impl Into<String>, status: u16, query: impl Into<String>, body: &[u8]) -> Self {
        let push = Push { query: query.into(), body: body.to_vec() };
        Self { mode, what: what.into(), status, request: push.request(path(mode)) }
    }

    fn get(mode: Mode, what: impl Into<String>, status: u16, query: &str) -> Self {
        let request = format!("GET {}?{query} HTTP/1.0\r\nHost: relay.test\r\nConnection: close\r\n\r\n", path(mode));
        Self { mode, what: what.into(), status, request: request.into_bytes() }
    }
}

/// Wrong signatures; and the right one in upper case, which is valid.
fn signatures(mode: Mode) -> Vec<ForgedRequest> {
    let (wechat, clear) = (of(mode), text("o1", "good"));
    let push = wechat.push(&clear);
    let name = if mode == Mode::Plaintext { "signature" } else { "msg_signature" };
    let right = parameter(&push.query, name).expect("it is signed").to_owned();
    let verification = wechat.verification(now(), ECHO);
    let proof = parameter(&verification, "signature").expect("it is signed").to_owned();
    let mut tries = vec![
        ForgedRequest::post(mode, "the push itself", 200, push.query.clone(), &push.body),
        ForgedRequest::post(mode, "upper-case hex", 200, push.query.replace(&right, &right.to_uppercase()), &push.body),
        ForgedRequest::post(
            mode,
            "none",
            if name == "signature" { 400 } else { 403 },
            without(&push.query, name),
            &push.body,
        ),
        ForgedRequest::post(mode, "an empty one", 400, push.query.replace(&right, ""), &push.body),
    ];
    let [timestamp, nonce] = ["timestamp", "nonce"].map(|part| parameter(&push.query, part).expect("a part"));
    for (what, wrong) in spoilt(&right, timestamp, nonce) {
        tries.push(ForgedRequest::post(mode, what, 403, push.query.replace(&right, &wrong), &push.body));
    }
    let [timestamp, nonce] = ["timestamp", "nonce"].map(|part| parameter(&verification, part).expect("a part"));
    for (what, wrong) in spoilt(&proof, timestamp, nonce) {
        tries.push(ForgedRequest::get(mode, what, 403, &verification.replace(&proof, &wrong)));
    }
    // The signature of one parameter in the other: they cover different parts.
    if mode != Mode::Plaintext {
        let plain = parameter(&push.query, "signature").expect("it is there").to_owned();
        tries.push(ForgedRequest::post(
            mode,
            "signature for msg_signature",
            403,
            push.query.replace(&right, &plain),
            &push.body,
        ));
        tries.push(ForgedRequest::get(mode, "msg_signature for signature", 403, &verification.replace(&proof, &right)));
        let offered = verification.replace("signature=", "msg_signature=");
        tries.push(ForgedRequest::get(mode, "a verification as WeCom has it", 400, &offered));
    }
    tries
}

/// Wrong signatures, made of the right one or without the token.
fn spoilt(right: &str, timestamp: &str, nonce: &str) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    for place in 0..40 {
        let digit = if &right[place..=place] == "0" { "1" } else { "0" };
        wrong.push((format!("digit {place}"), format!("{}{digit}{}", &right[..place], &right[place + 1..])));
        wrong.push((format!("{} digits", place + 1), right[..place + 1].to_owned()));
    }
    // A cut at 40 characters is the whole signature.
    wrong.retain(|(_, made)| made != right);
    let made = [
        ("a digit more", format!("{right}0")),
        ("twice", format!("{right}{right}")),
        ("a blank behind", format!("{right}%20")),
        ("a line end behind", format!("{right}%0a")),
        ("a blank before", format!("%20{}", &right[1..])),
        ("a plus before", format!("+{}", &right[1..])),
        ("0x before", format!("0x{}", &right[2..])),
        ("sha1= before", format!("sha1%3D{right}")),
        ("no hex", "g".repeat(40)),
        ("zeros", "0".repeat(40)),
        ("40 bytes that are not ASCII", "%C3%A9".repeat(20)),
        ("wide digits", "%EF%BC%90".repeat(40)),
        ("halves swapped", format!("{}{}", &right[20..], &right[..20])),
        ("backwards", right.chars().rev().collect()),
        ("of nothing", sign(&[])),
        ("without the token", sign(&[timestamp, nonce])),
        ("of another token", sign(&["anothertoken", timestamp, nonce])),
        ("of the token alone", sign(&["pamtest"])),
        ("true", "true".to_owned()),
        ("null", "null".to_owned()),
    ];
    wrong.extend(made.map(|(what, made)| (what.to_owned(), made)));
    wrong
}

/// Parameters twice, under other names, changed, and exchanged.
fn queries(mode: Mode) -> Vec<ForgedRequest> {
    let (wechat, clear) = (of(mode), text("o1", "never"));
    let Push { query, body } = wechat.push(&clear);
    let verification = wechat.verification(now(), ECHO);
    let mut tries = Vec::new();
    let names: Vec<_> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    for (name, value) in &names {
        let encoded = format!("%{:02x}{}", name.as_bytes()[0], &name[1..]);
        for (what, twice) in [
            ("behind", format!("{query}&{name}=x")),
            ("before", format!("{name}=x&{query}")),
            ("the same behind", format!("{query}&{name}={value}")),
            ("empty before", format!("{name}&{query}")),
            ("behind, encoded", format!("{query}&{encoded}=x")),
            ("before, encoded", format!("{encoded}={value}&{query}")),
        ] {
            tries.push(ForgedRequest::post(mode, format!("{name} twice, {what}"), 400, twice, &body));
        }
    }
    for name in ["signature", "echostr", "timestamp", "nonce"] {
        tries.push(ForgedRequest::get(mode, format!("{name} twice"), 400, &format!("{verification}&{name}=x")));
        tries.push(ForgedRequest::get(mode, format!("{name} twice"), 400, &format!("{name}=x&{verification}")));
    }
    let signed = if mode == Mode::Plaintext { "signature" } else { "msg_signature" };
    for (name, value) in names.iter().filter(|(name, _)| [signed, "timestamp", "nonce"].contains(name)) {
        let status = if *name == "msg_signature" { 403 } else { 400 };
        for other in
            [name.to_uppercase(), format!("{name}[]"), format!("{name}%20"), format!("%20{name}"), format!("x.{name}")]
        {
            let renamed = format!("{}&{other}={value}", without(&query, name));
            tries.push(ForgedRequest::post(mode, format!("{other} for {name}"), status, renamed, &body));
        }
    }
    let [timestamp, nonce] = ["timestamp", "nonce"].map(|part| parameter(&query, part).expect("a part").to_owned());
    let stamped = |timestamp: &str, nonce: &str| {
        format!("{}&timestamp={timestamp}&nonce={nonce}", without(&without(&query, "timestamp"), "nonce"))
    };
    let later = (timestamp.parse::<i64>().expect("a number") + 1).to_string();
    tries.push(ForgedRequest::post(mode, "a second later", 403, stamped(&later, &nonce), &body));
    tries.push(ForgedRequest::post(mode, "another nonce", 403, stamped(&timestamp, "1"), &body));
    // The sorted parts are the same, so the signature is valid; but the timestamp is not the current time.
    tries.push(ForgedRequest::post(mode, "timestamp and nonce exchanged", 403, stamped(&nonce, &timestamp), &body));
    let both = format!("{timestamp}{nonce}");
    for cut in (0..=both.len()).filter(|cut| *cut != timestamp.len()) {
        let moved = stamped(&both[..cut], &both[cut..]);
        tries.push(ForgedRequest::post(mode, format!("a timestamp of {cut} digits"), 400, moved, &body));
    }
    tries
}

/// Requests in the form of another mode.
fn modes(mode: Mode) -> Vec<ForgedRequest> {
    let (wechat, clear) = (of(mode), text("o1", "never"));
    let Push { query, body } = wechat.push(&clear);
    let kind = |kind: &str| format!("{}&encrypt_type={kind}", without(&query, "encrypt_type"));
    let mut tries = Vec::new();
    let sealing = ["aes", "raw", ""].into_iter().filter(|kind| match mode {
        Mode::Plaintext => *kind != "raw",
        Mode::Compatible | Mode::Secure => *kind != "aes",
    });
    for other in sealing.chain(["AES", "Aes", "aes%20", "%20aes", "RAW", "none", "aes256", "1"]) {
        tries.push(ForgedRequest::post(mode, format!("encrypt_type={other}"), 403, kind(other), &body));
    }
    for pair in ["encrypt_type=raw", "encrypt_type=aes"] {
        for doubled in [format!("{}&{pair}", kind("aes")), format!("{pair}&{}", kind("raw"))] {
            tries.push(ForgedRequest::post(mode, "encrypt_type twice", 400, doubled, &body));
        }
    }
    // A complete push in the form of each other mode, correctly signed with this account's token.
    for other in MODES.into_iter().filter(|other| (*other == Mode::Plaintext) != (mode == Mode::Plaintext)) {
        let strange = WeChat { mode: other, ..wechat.clone() }.push(&clear);
        tries.push(ForgedRequest::post(
            mode,
            format!("a push as in {other:?}"),
            403,
            strange.query.clone(),
            &strange.body,
        ));
        tries.push(ForgedRequest::post(mode, format!("the body of {other:?}"), 403, query.clone(), &strange.body));
        tries.push(ForgedRequest::post(mode, format!("the query of {other:?}"), 403, strange.query, &body));
    }
    if mode != Mode::Plaintext {
        tries.push(ForgedRequest::post(mode, "no encrypt_type", 403, without(&query, "encrypt_type"), &body));
        let bare = without(&without(&query, "encrypt_type"), "msg_signature");
        tries.push(ForgedRequest::post(
            mode,
            "a clear body under a right signature",
            403,
            bare.clone(),
            clear.as_bytes(),
        ));
        tries.push(ForgedRequest::post(
            mode,
            "the same as raw",
            403,
            format!("{bare}&encrypt_type=raw"),
            clear.as_bytes(),
        ));
        let json = format!("{{\"ToUserName\":\"{GH}\",\"MsgType\":\"text\",\"Content\":\"x\"}}");
        tries.push(ForgedRequest::post(mode, "clear JSON", 403, bare, json.as_bytes()));
    } else {
        let beside = clear.replace("</xml>", "<Encrypt>x</Encrypt></xml>");
        tries.push(ForgedRequest::post(mode, "an Encrypt beside", 403, query, beside.as_bytes()));
    }
    tries
}

/// Captured pushes, sent late, to other paths, and as pushes of other accounts.
fn replays(mode: Mode) -> Vec<ForgedRequest> {
    let (wechat, clear) = (of(mode), text("o1", "never"));
    let mut tries = Vec::new();
    // The window is ten minutes; some seconds are for the test itself.
    for away in [-660, -3600, -86_400, 660, 3600] {
        let old = wechat.push_at(now() + away, &clear);
        tries.push(ForgedRequest::post(mode, format!("a push of {away} s"), 403, old.query, &old.body));
        tries.push(ForgedRequest::get(
            mode,
            format!("a verification of {away} s"),
            403,
            &wechat.verification(now() + away, ECHO),
        ));
    }
    let push = wechat.push(&clear);
    let elsewhere = MODES.into_iter().filter(|other| *other != mode).map(path).chain(["/twin", OTHER]);
    for path in elsewhere {
        let (what, request) = (format!("posted to {path}"), push.request(path));
        tries.push(ForgedRequest { mode, what, status: 403, request });
    }
    let stranger = WeChat { token: "anothertoken".to_owned(), ..wechat.clone() };
    let other = WeChat { app_id: "wxthetwin000000000".to_owned(), ..wechat.clone() };
    let prefix = WeChat { app_id: wechat.app_id[..wechat.app_id.len() - 1].to_owned(), ..wechat.clone() };
    let push = stranger.push(&clear);
    tries.push(ForgedRequest::post(mode, "signed by another token", 403, push.query, &push.body));
    if mode != Mode::Plaintext {
        for (what, account) in [("another AppID", other), ("an AppID that is the beginning of ours", prefix)] {
            let push = account.push(&clear);
            tries.push(ForgedRequest::post(mode, what, 403, push.query, &push.body));
        }
    }
    tries
}

/// The signature has no delimiters: bytes moved between nonce and Encrypt leave it as it is.
fn cuts(mode: Mode) -> Vec<ForgedRequest> {
    let (wechat, clear) = (of(mode), text("o1", "never"));
    // A push whose parts sort as timestamp, nonce, Encrypt, token, so that nonce and Encrypt are neighbours.
    let sealed = (0_u8..=255).map(|seed| wechat.seal([seed; 16], clear.as_bytes()));
    let encrypt = sealed.into_iter().find(|text| text.as_bytes()[0].is_ascii_uppercase()).expect("some do");
    let push = wechat.push_encrypted(now(), &clear, &encrypt);
    let part = |name| parameter(&push.query, name).expect("a part").to_owned();
    let [timestamp, nonce, signature] = ["timestamp", "nonce", "msg_signature"].map(part);
    let body = String::from_utf8(push.body.clone()).expect("UTF-8");
    let (joined, mut alike, mut tries) = (format!("{nonce}{encrypt}"), 0, Vec::new());
    for cut in (1..joined.len()).filter(|cut| *cut != nonce.len()) {
        let (moved_nonce, moved) = joined.split_at(cut);
        alike += usize::from(sign(&["pamtest", &timestamp, moved_nonce, moved]) == signature);
        let escaped = moved_nonce.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        let query = format!("{}&nonce={escaped}", without(&push.query, "nonce"));
        let what = format!("nonce and Encrypt cut at {cut}");
        // Refused by their form: the remaining text does not fill whole blocks, or the nonce is too long.
        tries.push(ForgedRequest::post(mode, what, 400, query, body.replace(&encrypt, moved).as_bytes()));
    }
    assert!(alike > 50, "the forgeries are none: {alike}");
    tries
}

/// Bodies around the encrypted text that WeChat does not send.
fn bodies(mode: Mode) -> Vec<ForgedRequest> {
    let (wechat, clear) = (of(mode), text("o1", "never"));
    let Push { query, body } = wechat.push(&clear);
    let body = String::from_utf8(body).expect("UTF-8");
    let encrypt = element(&body, "Encrypt").expect("it is sealed");
    let whole = format!("<Encrypt><![CDATA[{encrypt}]]></Encrypt>");
    let another = wechat.push(&text("o1", "another"));
    let twice = body.replace(&whole, &format!("{whole}{whole}"));
    let first = body.replace(&whole, &format!("<Encrypt>x</Encrypt>{whole}"));
    let last = body.replace(&whole, &format!("{whole}<Encrypt>x</Encrypt>"));
    let json = format!("{{\"Encrypt\":\"{encrypt}\",\"Encrypt\":\"{encrypt}\"}}");
    let flipped = |place: usize| {
        let digit = if encrypt.as_bytes()[place] == b'A' { "B" } else { "A" };
        body.replace(&encrypt, &format!("{}{digit}{}", &encrypt[..place], &encrypt[place + 1..]))
    };
    let mut tries: Vec<_> = [
        ("another push's body", 403, String::from_utf8(another.body.clone()).expect("UTF-8")),
        ("no Encrypt", 403, body.replace(&whole, "")),
        ("an empty Encrypt", 400, body.replace(&whole, "<Encrypt/>")),
        ("Encrypt twice", 400, twice),
        ("another Encrypt before", 400, first),
        ("another Encrypt behind", 400, last),
        ("Encrypt twice in JSON", 400, json),
        ("encrypt in small letters", 403, body.replace("Encrypt>", "encrypt>")),
        ("Encrypt further in", 403, body.replace(&whole, &format!("<a>{whole}</a>"))),
        ("Encrypt in a comment", 403, body.replace(&whole, &format!("<!-- {whole} -->"))),
        ("Encrypt as text", 403, body.replace(&whole, &format!("<a>&lt;Encrypt&gt;{encrypt}</a>"))),
        ("Encrypt as an attribute", 403, body.replace(&whole, &format!("<a Encrypt='{encrypt}'/>"))),
        ("half of Encrypt", 403, body.replace(&encrypt, &encrypt[..128])),
        ("a DOCTYPE before", 400, format!("<!DOCTYPE xml>{body}")),
    ]
    .into_iter()
    .map(|(what, status, body)| ForgedRequest::post(mode, what, status, query.clone(), body.as_bytes()))
    .collect();
    for place in (0..encrypt.trim_end_matches('=').len() - 1).step_by(7) {
        tries.push(ForgedRequest::post(
            mode,
            format!("Encrypt changed at {place}"),
            403,
            query.clone(),
            flipped(place).as_bytes(),
        ));
    }
    tries.push(ForgedRequest::post(mode, "another push's query", 403, another.query, body.as_bytes()));
    if mode == Mode::Secure {
        let other = body.replace(GH, "gh_000000000000");
        tries.push(ForgedRequest::post(mode, "another ToUserName outside", 403, query, other.as_bytes()));
    }
    tries
}

/// Envelopes with a valid signature and invalid contents, as a padding-oracle attack sends them.
fn envelopes(mode: Mode) -> Vec<ForgedRequest> {
    let (wechat, clear) = (of(mode), text("o1", "never"));
    let inside = |length: u32, app_id: &str| {
        [&b"0123456789abcdef"[..], &length.to_be_bytes(), clear.as_bytes(), app_id.as_bytes()].concat()
    };
    let length = u32::try_from(clear.len()).expect("short");
    let padded = |mut text: Vec<u8>| {
        let pad = 32 - text.len() % 32;
        text.resize(text.len() + pad, u8::try_from(pad).expect("1 to 32"));
        text
    };
    let right = padded(inside(length, &wechat.app_id));
    let pad = right[right.len() - 1];
    let mut wrong = Vec::new();
    for last in (0..=255).filter(|last| *last != pad) {
        let mut text = right.clone();
        *text.last_mut().expect("not empty") = last;
        wrong.push((format!("a last byte of {last}"), text));
    }
    for place in 2..=usize::from(pad) {
        let mut text = right.clone();
        let at = text.len() - place;
        text[at] ^= 1;
        wrong.push((format!("a padding byte {place} from the end"), text));
    }
    for other in [0, 1, length - 1, length + 1, length + 32, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        wrong.push((format!("a length of {other}"), padded(inside(other, &wechat.app_id))));
    }
    let own = &wechat.app_id;
    for app_id in ["", "wx", &own[..own.len() - 1], &format!("{own}0"), &own.to_uppercase(), "wxthetwin000000000"] {
        wrong.push((format!("AppID {app_id:?}"), padded(inside(length, app_id))));
    }
    for text in [vec![32; 32], vec![1; 32], vec![0; 64], vec![255; 96]] {
        wrong.push((format!("nothing but {}", text[0]), text));
    }
    let mut tries: Vec<_> = wrong
        .into_iter()
        .map(|(what, text)| {
            let push = wechat.push_encrypted(now(), &clear, &wechat.encrypt(&text));
            ForgedRequest::post(mode, what, 403, push.query, &push.body)
        })
        .collect();
    let other_key = WeChat { aes_key: wechat.aes_key.replace('a', "b"), ..wechat.clone() }.push(&clear);
    tries.push(ForgedRequest::post(mode, "another key", 403, other_key.query, &other_key.body));
    tries
}

/// An answer without its `date` header.
fn shown(answer: &Answer) -> Vec<String> {
    let headers = answer.headers.iter().filter(|(name, _)| name != "date");
    let head = [format!("{} {}", answer.version, answer.status), answer.text().to_owned()];
    head.into_iter().chain(headers.map(|(name, value)| format!("{name}: {value}"))).collect()
}

fn of(mode: Mode) -> WeChat {
    WeChat { app_id: format!("wx{}", mode.name()), ..WeChat::new(mode) }
}

fn path(mode: Mode) -> &'static str {
    match mode {
        Mode::Plaintext => "/p",
        Mode::Compatible => "/c",
        Mode::Secure => "/s",
    }
}

fn without(query: &str, name: &str) -> String {
    let kept: Vec<_> = query.split('&').filter(|pair| pair.split('=').next() != Some(name)).collect();
    kept.join("&")
}
