//! Tests of `account` and `sealing` together: what is made here opens, and what is forged does not.

use bytes::Bytes;
use proptest::prelude::*;

use super::signature::{signature, verify};
use super::*;
use crate::secret::Secret;

const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
const OLD_KEY: &str = "kWxPEV2UEDyxWpmPdKC3F4dgPDmOvfKX1HGnEUDS1aR";
const CLEAR: &str = "<xml><ToUserName><![CDATA[gh_1]]></ToUserName>\n<FromUserName><![CDATA[o_1]]></FromUserName>\n\
    <CreateTime>1795161600</CreateTime>\n<MsgType><![CDATA[text]]></MsgType>\n<Content><![CDATA[hi]]></Content>\n</xml>";
const JSON: &str = r#"{"ToUserName":"gh_1","CreateTime":1795161600,"MsgType":"event","Event":"debug_demo"}"#;
const MODES: [Mode; 3] = [Mode::Plaintext, Mode::Compatible, Mode::Secure];

fn credentials(mode: Mode) -> Credentials {
    Credentials {
        app_id: "wx1".into(),
        token: Secret::new("weixin"),
        previous_token: None,
        aes_key: Some(AesKey::parse(KEY).unwrap()),
        previous_aes_key: None,
        mode,
    }
}

fn salt() -> Salt {
    Salt::new(1_795_161_600, std::array::from_fn(|place| place as u8 * 7))
}

fn open(credentials: &Credentials, query: &str, body: &str) -> Result<Opened, OpenError> {
    credentials.open(&Query::parse(query)?, &Bytes::copy_from_slice(body.as_bytes()))
}

fn push(mode: Mode, clear: &str) -> SealedPush {
    credentials(mode).push(clear, "o_1", &salt())
}

/// A query as an attacker would write it, with a right or wrong `msg_signature`.
fn sealed_query(timestamp: &str, nonce: &str, msg_signature: &str) -> String {
    format!("timestamp={timestamp}&nonce={nonce}&encrypt_type=aes&msg_signature={msg_signature}")
}

fn without(query: &str, key: &str) -> String {
    let kept: Vec<_> = query.split('&').filter(|pair| !pair.starts_with(&format!("{key}="))).collect();
    kept.join("&")
}

#[test]
fn what_an_account_pushes_it_opens_in_every_mode_and_notation() {
    for mode in MODES {
        for (clear, syntax) in [(CLEAR, Syntax::Xml), (JSON, Syntax::Json)] {
            let SealedPush { query, body } = push(mode, clear);
            let opened = open(&credentials(mode), &query, &body).unwrap();
            assert_eq!((&opened.clear[..], opened.manner.syntax), (clear.as_bytes(), syntax), "{mode}");
            assert_eq!(opened.message, Message::parse(clear.as_bytes()).unwrap());
            assert_eq!(body.contains("Content"), mode != Mode::Secure && syntax == Syntax::Xml, "{mode}");
            assert!(open(&credentials(mode), &query, &format!("\u{feff}{body}")).is_ok());
        }
    }
    let nothing = credentials(Mode::Compatible).push("{ }", "", &salt());
    assert_eq!(open(&credentials(Mode::Compatible), &nothing.query, &nothing.body).unwrap().clear, "{ }");
}

#[test]
fn the_query_and_the_body_are_as_wechat_writes_them() {
    let SealedPush { query, body } = credentials(Mode::Secure).push(CLEAR, "o&1", &salt());
    let keys: Vec<_> = query.split('&').map(|pair| pair.split_once('=').unwrap().0).collect();
    assert_eq!(keys, ["signature", "timestamp", "nonce", "openid", "encrypt_type", "msg_signature"]);
    assert!(query.contains("openid=o%261&"));
    assert!(body.starts_with("<xml><ToUserName><![CDATA[gh_1]]></ToUserName>\n<Encrypt><![CDATA["), "{body}");
    let plain = push(Mode::Plaintext, CLEAR);
    assert_eq!(plain.body, CLEAR);
    assert!(!plain.query.contains("encrypt_type"));
}

/// They were once rendered from the tree, which lost comments, blanks and mixed text.
#[test]
fn the_clear_elements_of_compatible_mode_are_the_bytes_that_came() {
    let odd = CLEAR.replace("hi", "1 ").replace("<Content>", "<!-- c --><A x='1'>a<B>01</B> b</A><Content>");
    for clear in [CLEAR, &odd, &format!("\u{feff}{odd}\r\n"), &odd.replace('\n', "")] {
        let body = push(Mode::Compatible, clear).body;
        let (before, after) = body.split_once("<Encrypt><![CDATA[").unwrap();
        assert_eq!(Some(before), clear.trim_end().strip_suffix("</xml>"));
        assert!(after.ends_with("]]></Encrypt>\n</xml>"), "{after}");
    }
    // Where the end of the root is not the end of the text, only the sealed form is certain to be sound.
    let SealedPush { query, body } = push(Mode::Compatible, &format!("{CLEAR}<!-- end -->"));
    assert!(!body.contains("Content"));
    assert!(open(&credentials(Mode::Compatible), &query, &body).is_ok());
}

#[test]
fn the_mode_is_the_accounts_and_not_the_requests() {
    for sent in MODES {
        let SealedPush { query, body } = push(sent, CLEAR);
        for account in MODES {
            let result = open(&credentials(account), &query, &body);
            let sealed = |mode| mode != Mode::Plaintext;
            if sealed(sent) == sealed(account) {
                assert!(result.is_ok(), "{sent} to {account}");
            } else {
                assert!(matches!(result, Err(OpenError::ModeMismatch)), "{sent} to {account}: {result:?}");
            }
        }
    }
}

#[test]
fn a_request_that_is_changed_towards_another_mode_is_refused() {
    for mode in [Mode::Compatible, Mode::Secure] {
        let account = credentials(mode);
        let SealedPush { query, body } = push(mode, CLEAR);
        for (query, body, what) in [
            (without(&query, "encrypt_type"), body.clone(), "no encrypt_type"),
            (query.replace("=aes", "=raw"), body.clone(), "encrypt_type=raw"),
            (query.replace("=aes", "=AES"), body.clone(), "encrypt_type=AES"),
            (without(&query, "msg_signature"), body.clone(), "no msg_signature"),
            (query.clone(), CLEAR.to_owned(), "a clear body"),
            (query.clone(), JSON.to_owned(), "a clear JSON body"),
            (query.clone(), format!("<xml><a>{}</a></xml>", &body[5..body.len() - 6]), "Encrypt further in"),
            (push(Mode::Plaintext, CLEAR).query, CLEAR.to_owned(), "a sound plaintext push"),
        ] {
            let result = open(&account, &query, &body);
            assert!(matches!(result, Err(OpenError::ModeMismatch)), "{mode}, {what}: {result:?}");
        }
    }
    let plain = push(Mode::Plaintext, CLEAR).query;
    let sealed = push(Mode::Secure, CLEAR).body;
    let account = credentials(Mode::Plaintext);
    assert!(matches!(open(&account, &plain, &sealed), Err(OpenError::ModeMismatch)));
    assert!(matches!(open(&account, &format!("{plain}&encrypt_type=aes"), CLEAR), Err(OpenError::ModeMismatch)));
    assert!(open(&account, &format!("{plain}&encrypt_type=raw"), CLEAR).is_ok());
}

#[test]
fn the_clear_elements_of_compatible_mode_do_not_count() {
    let SealedPush { query, body } = push(Mode::Compatible, CLEAR);
    let forged = body.replacen("gh_1", "gh_2", 1).replacen("[hi]", "[forged]", 1);
    let opened = open(&credentials(Mode::Compatible), &query, &forged).unwrap();
    assert_eq!((opened.message.content(), opened.message.to_user()), ("hi", "gh_1"));
    let result = open(&credentials(Mode::Secure), &query, &forged);
    assert!(matches!(result, Err(OpenError::Addressee)), "{result:?}");
}

#[test]
fn compatible_mode_sends_the_clear_elements_as_they_were_written() {
    let clear = CLEAR.replace("[hi]", "[123]");
    let SealedPush { body, .. } = push(Mode::Compatible, &clear);
    let (before, after) = body.split_once("<Encrypt>").unwrap();
    assert_eq!(format!("{before}</xml>"), clear);
    assert!(after.ends_with("</Encrypt>\n</xml>"), "{after}");
}

#[test]
fn a_wrong_signature_is_refused_and_upper_case_is_not_wrong() {
    for mode in MODES {
        let SealedPush { query, body } = push(mode, CLEAR);
        let key = if mode == Mode::Plaintext { "signature=" } else { "msg_signature=" };
        let start = query.rfind(key).unwrap() + key.len();
        let given = &query[start..start + 40];
        let upper = query.replace(given, &given.to_uppercase());
        assert!(open(&credentials(mode), &upper, &body).is_ok());
        let wrong = query.replace(given, &format!("{}{}", &given[1..], &given[..1]));
        assert!(matches!(open(&credentials(mode), &wrong, &body), Err(OpenError::Signature)));
        for short in ["", &given[1..], "g"] {
            let result = open(&credentials(mode), &query.replace(given, short), &body);
            assert!(matches!(result, Err(OpenError::Malformed(_) | OpenError::Missing(_))), "{mode}: {result:?}");
        }
    }
}

#[test]
fn in_plaintext_mode_signature_counts_and_in_the_others_msg_signature() {
    let SealedPush { query, body } = push(Mode::Secure, CLEAR);
    assert!(open(&credentials(Mode::Secure), &without(&query, "signature"), &body).is_ok());
    let plain = push(Mode::Plaintext, CLEAR).query.replace("signature=", "msg_signature=");
    assert!(matches!(open(&credentials(Mode::Plaintext), &plain, CLEAR), Err(OpenError::Missing("signature"))));
}

/// The real push of protocol.md 2.1: ts=1414243737, nonce=1792106704, token `weixin`.
const CAPTURED: &str = "35703636de2f9df2a77a662b68e521ce17c34db4";

#[test]
fn a_captured_signature_is_no_msg_signature_of_other_cuts() {
    let account = credentials(Mode::Secure);
    let (timestamp, nonce) = ("1414243737", "1792106704");
    let parts = format!("{timestamp}{nonce}");
    let mut cuts = 0;
    for first in 1..parts.len() - 1 {
        for second in first + 1..parts.len() {
            let [timestamp, nonce, encrypt] = [&parts[..first], &parts[first..second], &parts[second..]];
            cuts += usize::from(verify(["weixin", timestamp, nonce, encrypt], CAPTURED));
            let body = format!("<xml><Encrypt>{encrypt}</Encrypt></xml>");
            let result = open(&account, &sealed_query(timestamp, nonce, CAPTURED), &body);
            assert!(matches!(result, Err(OpenError::NotBase64 | OpenError::Malformed(_))), "{result:?}");
        }
    }
    assert!(cuts > 10, "the forgeries are none: {cuts}");
}

#[test]
fn a_captured_push_cannot_be_cut_elsewhere() {
    // Sorted: timestamp, nonce, sealed text, token. So the sealed text can lose characters to the nonce.
    let account = credentials(Mode::Secure);
    let salt = Salt { nonce: "2".into(), ..salt() };
    let encrypt = AesKey::parse(KEY).unwrap().seal(CLEAR.as_bytes(), "wx1", salt.random);
    let given = signature(["weixin", "1795161600", &salt.nonce, &encrypt]);
    let joined = format!("{}{encrypt}", salt.nonce);
    let (mut matching, mut opened) = (0, 0);
    for cut in 1..joined.len() {
        let (nonce, encrypt) = joined.split_at(cut);
        matching += usize::from(verify(["weixin", "1795161600", nonce, encrypt], &given));
        let query = sealed_query("1795161600", nonce, &given);
        opened += usize::from(open(&account, &query, &format!("<xml><Encrypt>{encrypt}</Encrypt></xml>")).is_ok());
    }
    assert!(matching > 10, "the forgeries are none: {matching}");
    assert_eq!(opened, 1, "only the cut that WeChat made");
}

#[test]
fn parameters_must_have_their_shape_before_anything_is_compared() {
    let encrypt = AesKey::parse(KEY).unwrap().seal(CLEAR.as_bytes(), "wx1", salt().random);
    let body = format!("<xml><Encrypt>{encrypt}</Encrypt></xml>");
    let long = "7".repeat(129);
    for (timestamp, nonce, sound) in [
        ("1795161600", "1", true),
        ("1795161600", &long[1..], true),
        ("1795161600", &long, false),
        ("179516160", "01", false),
        ("17951616001", "1", false),
        ("+795161600", "1", false),
        ("1795161600", "a b", false),
        ("1795161600", "你", false),
        ("", "1", false),
        ("1795161600", "", false),
    ] {
        let query = sealed_query(timestamp, nonce, &signature(["weixin", timestamp, nonce, &encrypt]));
        let result = open(&credentials(Mode::Secure), &query, &body);
        assert_eq!(result.is_ok(), sound, "{timestamp} {nonce}: {result:?}");
        assert!(sound || matches!(result, Err(OpenError::Missing(_) | OpenError::Malformed(_))));
    }
}

#[test]
fn bodies_that_are_none_are_told_apart_from_forged_ones() {
    let query = push(Mode::Secure, CLEAR).query;
    let account = credentials(Mode::Secure);
    for body in ["", " \r\n"] {
        assert!(matches!(open(&account, &query, body), Err(OpenError::EmptyBody)));
        assert!(matches!(
            open(&credentials(Mode::Plaintext), &push(Mode::Plaintext, CLEAR).query, body),
            Err(OpenError::EmptyBody)
        ));
    }
    for body in [
        "hello",
        "<xml>",
        "<!DOCTYPE a><xml><Encrypt>AAAA</Encrypt></xml>",
        "{\"Encrypt\":",
        "<!-- -->",
        "<a/><xml><Encrypt>AAAA</Encrypt></xml>",
    ] {
        assert!(matches!(open(&account, &query, body), Err(OpenError::Body(_))), "{body}");
    }
    for body in
        ["<xml><Encrypt>AAAA</Encrypt></xml>", "<xml><Encrypt/></xml>", r#"{"Encrypt":"!"}"#, r#"{"Encrypt":1}"#]
    {
        assert!(matches!(open(&account, &query, body), Err(OpenError::NotBase64)), "{body}");
    }
    let twice = "<xml><Encrypt>AAAA</Encrypt><Encrypt>AAAA</Encrypt></xml>";
    assert!(matches!(open(&account, &query, twice), Err(OpenError::Malformed("Encrypt"))));
    let twice = r#"{"Encrypt":"AAAA","Encrypt":"AAAA"}"#;
    assert!(matches!(open(&account, &query, twice), Err(OpenError::Malformed("Encrypt"))));
}

#[test]
fn another_app_id_or_key_and_a_changed_text_give_one_error() {
    let SealedPush { query, body } = push(Mode::Secure, CLEAR);
    let other_id = Credentials { app_id: "wx2".into(), ..credentials(Mode::Secure) };
    let other_key = Credentials { aes_key: AesKey::parse(OLD_KEY).ok(), ..credentials(Mode::Secure) };
    for account in [other_id, other_key] {
        assert!(matches!(open(&account, &query, &body), Err(OpenError::Envelope(_))));
    }
    let no_key = Credentials { aes_key: None, ..credentials(Mode::Secure) };
    assert!(matches!(open(&no_key, &query, &body), Err(OpenError::NoKey)));
    let SealedPush { query, body } = credentials(Mode::Secure).push("not a message", "", &salt());
    assert!(matches!(open(&credentials(Mode::Secure), &query, &body), Err(OpenError::Clear(_))));
}

#[test]
fn folded_and_padded_sealed_texts_open() {
    let SealedPush { query, body } = push(Mode::Secure, CLEAR);
    let folded =
        body.replace("<Encrypt><![CDATA[", "<Encrypt>\n  <![CDATA[").replace("]]></Encrypt>", "]]>\n</Encrypt>");
    assert!(open(&credentials(Mode::Secure), &query, &folded).is_ok());
    let escaped = push(Mode::Secure, JSON);
    assert!(open(&credentials(Mode::Secure), &escaped.query, &escaped.body.replace('/', "\\/")).is_ok());
}

#[test]
fn the_previous_token_and_key_still_count_and_are_reported() {
    let old =
        Credentials { token: Secret::new("old"), aes_key: AesKey::parse(OLD_KEY).ok(), ..credentials(Mode::Secure) };
    let both = Credentials {
        previous_token: Some(Secret::new("old")),
        previous_aes_key: AesKey::parse(OLD_KEY).ok(),
        ..credentials(Mode::Secure)
    };
    let new = credentials(Mode::Secure);
    let SealedPush { query, body } = old.push(CLEAR, "", &salt());
    assert!(open(&new, &query, &body).is_err());
    let opened = open(&both, &query, &body).unwrap();
    assert_eq!((opened.manner.token, opened.manner.key), (KeyVersion::Previous, KeyVersion::Previous));
    let reply = both.seal_reply("<xml/>", opened.manner, &salt());
    assert_eq!(old.open_reply(reply.as_bytes()).unwrap(), "<xml/>");
    let SealedPush { query, body } = new.push(CLEAR, "", &salt());
    let opened = open(&both, &query, &body).unwrap();
    assert_eq!((opened.manner.token, opened.manner.key), (KeyVersion::Current, KeyVersion::Current));
    let query = old.verification("123", &salt());
    assert_eq!(both.verify_url(&Query::parse(&query).unwrap()).unwrap(), "123");
}

#[test]
fn a_url_is_verified_by_its_signature_alone() {
    let account = credentials(Mode::Secure);
    let query = account.verification("4375120948345356249", &salt());
    let parsed = Query::parse(&query).unwrap();
    assert_eq!(account.verify_url(&parsed).unwrap(), "4375120948345356249");
    assert_eq!(Credentials::timestamp(&parsed).unwrap(), 1_795_161_600);
    for (query, what) in [
        (query.replace("timestamp=1", "timestamp=2"), "another timestamp"),
        (without(&query, "echostr"), "no echostr"),
        (without(&query, "signature"), "no signature"),
        (query.replace("signature=", "msg_signature="), "msg_signature instead"),
    ] {
        assert!(account.verify_url(&Query::parse(&query).unwrap()).is_err(), "{what}");
    }
}

#[test]
fn sealed_replies_open_and_changed_ones_do_not() {
    let account = credentials(Mode::Secure);
    for syntax in [Syntax::Xml, Syntax::Json] {
        let reply = account.seal_reply(CLEAR, ReplySealing::current(syntax), &salt());
        assert_eq!(account.open_reply(reply.as_bytes()).unwrap(), CLEAR);
        let later = reply.replace("1795161600", "1795161601");
        assert!(matches!(account.open_reply(later.as_bytes()), Err(OpenError::Signature)));
    }
    let stamped = |timestamp| {
        let salt = Salt { timestamp, ..salt() };
        account.seal_reply(CLEAR, ReplySealing::current(Syntax::Xml), &salt)
    };
    let milliseconds = stamped(1_795_161_600_123);
    assert_eq!(account.open_reply(milliseconds.as_bytes()).unwrap(), CLEAR, "as co-wechat stamps them");
    let result = account.open_reply(stamped(17_951_616_001).as_bytes());
    assert!(matches!(result, Err(OpenError::Malformed("TimeStamp" | "timestamp"))), "{result:?}");
    let clear = credentials(Mode::Plaintext).seal_reply(CLEAR, ReplySealing::current(Syntax::Xml), &salt());
    assert_eq!(clear, CLEAR);
    assert!(matches!(account.open_reply(CLEAR.as_bytes()), Err(OpenError::Missing(_))));
}

#[test]
fn a_salt_looks_like_wechats_own() {
    let Salt { timestamp, nonce, random } = Salt::new(1_795_161_600, [255; 24]);
    assert_eq!((timestamp, nonce.len()), (1_795_161_600, 10));
    assert!(random.iter().all(u8::is_ascii_hexdigit));
    assert_ne!(Salt::new(0, [1; 24]), Salt::new(0, [2; 24]));
}

#[test]
fn nothing_secret_is_shown() {
    let SealedPush { query, body } = push(Mode::Secure, CLEAR);
    let opened = open(&credentials(Mode::Secure), &query, &body).unwrap();
    let shown = format!("{:?} {:?} {opened:?}", credentials(Mode::Secure), Query::parse(&query).unwrap());
    for secret in ["weixin", KEY, "o_1", "gh_1", &query[10..50]] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn modes_are_read_as_they_are_written() {
    for mode in MODES {
        assert_eq!(mode.to_string().parse(), Ok(mode));
    }
    assert!("Secure".parse::<Mode>().is_err());
}

proptest! {
    #[test]
    fn any_text_comes_through_a_push(content in any::<String>(), openid in any::<String>(), random in any::<[u8; 24]>()) {
        let openid = openid.replace('\0', "");
        let root = Element { children: vec![Element::with_text("Content", content)], ..Element::new("xml") };
        let clear = xml::render(&root);
        for mode in MODES {
            let SealedPush { query, body } = credentials(mode).push(&clear, &openid, &Salt::new(1_795_161_600, random));
            let parsed = Query::parse(&query).unwrap();
            prop_assert_eq!(parsed.openid.as_deref().unwrap_or(""), &openid);
            let opened = credentials(mode).open(&parsed, &Bytes::from(body)).unwrap();
            prop_assert_eq!(&opened.message.root, &root);
        }
    }

    #[test]
    fn no_body_makes_opening_panic(body in "(<xml>|<Encrypt>|</Encrypt>|</xml>|\\{|\"Encrypt\":|\"|\\}|AAAA|=|.){0,12}") {
        for mode in MODES {
            let query = push(mode, CLEAR).query;
            let query = Query::parse(&query).unwrap();
            // A plaintext signature does not cover the body.
            let opened = credentials(mode).open(&query, &Bytes::from(body.clone())).is_ok();
            prop_assert!(!opened || mode == Mode::Plaintext);
        }
    }
}
