//! The time of a refusal reveals no more than its answer: refusals by the signature are compared among themselves, and
//! refusals by the envelope among themselves.
//!
//! The two kinds do differ, as a wrong signature is refused before anything is decrypted. That reveals nothing: a
//! client that gets as far as the envelope has signed it, with the token. The check is coarse, so that it passes on a
//! busy machine: it finds work that is left out, not single instructions. `cargo bench --bench timing` measures
//! closely.

use std::hint::black_box;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::time::Instant;

use super::envelope::Ciphertext;
use super::signature::signature;
use super::*;
use crate::secret::Secret;

const ROUNDS: usize = 2000;
/// How far the times of two kinds of refusal may be apart.
const APART: f64 = 0.12;

const TIMESTAMP: &str = "1795161600";
const NONCE: &str = "1792106704";
const RANDOM: [u8; 16] = *b"0123456789abcdef";

type Kind<'a> = (&'static str, Box<dyn Fn() -> bool + 'a>);

fn key(first: char) -> AesKey {
    AesKey::parse(&format!("{first}bcdefghijklmnopqrstuvwxyz0123456789ABCDEFG")).unwrap()
}

fn account() -> Credentials {
    Credentials {
        app_id: "wx1".into(),
        token: Secret::new("weixin"),
        previous_token: None,
        aes_key: Some(key('a')),
        previous_aes_key: None,
        mode: Mode::Secure,
    }
}

/// A push around any sealed text, with that signature.
fn push(encrypt: &str, signature: &str) -> (String, Bytes) {
    let query = format!("timestamp={TIMESTAMP}&nonce={NONCE}&encrypt_type=aes&msg_signature={signature}");
    (query, Bytes::from(format!("<xml><Encrypt><![CDATA[{encrypt}]]></Encrypt></xml>")))
}

/// By how much the slowest kind takes longer than the fastest.
fn spread(kinds: &[Kind<'_>]) -> (f64, String) {
    let mut times: Vec<Vec<u128>> = vec![Vec::with_capacity(ROUNDS); kinds.len()];
    for round in 0..ROUNDS {
        // In turn, so that no kind always comes after the same one.
        for turn in 0..kinds.len() {
            let kind = if round % 2 == 0 { turn } else { kinds.len() - 1 - turn };
            let begun = Instant::now();
            let refused = black_box(kinds[kind].1());
            times[kind].push(begun.elapsed().as_nanos());
            assert!(refused, "{}", kinds[kind].0);
        }
    }
    // Whatever else the machine does only adds: the lower quarter is the code's own.
    let own = |times: &mut Vec<u128>| *times.select_nth_unstable(ROUNDS / 4).1 as f64;
    let own: Vec<_> = times.iter_mut().map(own).collect();
    let (least, most) = (own.iter().copied().fold(f64::MAX, f64::min), own.iter().copied().fold(0.0, f64::max));
    let shown: Vec<_> = kinds.iter().zip(&own).map(|((name, _), own)| format!("{name}: {own} ns")).collect();
    (most / least - 1.0, shown.join(", "))
}

/// Takes some measurements, of which the best counts: each holds what the code itself does.
fn assert_alike(kinds: &[Kind<'_>]) {
    let mut shown = Vec::new();
    for _ in 0..5 {
        let (apart, times) = spread(kinds);
        if apart < APART {
            return;
        }
        shown.push(format!("{apart:.3}: {times}"));
    }
    panic!("told apart by their time:\n{}", shown.join("\n"));
}

#[test]
fn wrong_signatures_take_the_same_time_wherever_they_are_wrong() {
    let (account, encrypt) = (account(), key('a').seal(&[b'x'; 500], "wx1", RANDOM));
    let right = signature(["weixin", TIMESTAMP, NONCE, &encrypt]);
    let wrong_at = |place: usize| {
        let digit = if &right[place..=place] == "0" { "1" } else { "0" };
        format!("{}{digit}{}", &right[..place], &right[place + 1..])
    };
    let kinds = [
        ("the first digit", wrong_at(0)),
        ("the 20th digit", wrong_at(19)),
        ("the last digit", wrong_at(39)),
        ("the token", signature(["another", TIMESTAMP, NONCE, &encrypt])),
    ];
    let kinds = kinds.map(|(name, wrong)| {
        let (query, body) = push(&encrypt, &wrong);
        let account = &account;
        let refused = move || matches!(account.open(&Query::parse(&query).unwrap(), &body), Err(OpenError::Signature));
        (name, Box::new(refused) as Box<dyn Fn() -> bool>)
    });
    assert_alike(&kinds);
}

#[test]
fn broken_envelopes_take_the_same_time_whatever_is_broken() {
    // Short, so that what is checked after the decryption is a good part of the whole.
    let broken = broken(b"hello");
    let key = key('a');
    let kinds = broken.iter().map(|(name, encrypt)| {
        let sealed = Ciphertext::decode(encrypt).unwrap();
        let key = &key;
        (*name, Box::new(move || key.open(sealed.clone(), "wx1").is_err()) as Box<dyn Fn() -> bool>)
    });
    assert_alike(&kinds.collect::<Vec<_>>());
}

#[test]
fn pushes_with_broken_envelopes_take_the_same_time_whatever_is_broken() {
    let account = account();
    let kinds = broken(&[b'x'; 2009]).into_iter().map(|(name, encrypt)| {
        let (query, body) = push(&encrypt, &signature(["weixin", TIMESTAMP, NONCE, &encrypt]));
        let account = &account;
        let refused =
            move || matches!(account.open(&Query::parse(&query).unwrap(), &body), Err(OpenError::Envelope(_)));
        (name, Box::new(refused) as Box<dyn Fn() -> bool>)
    });
    assert_alike(&kinds.collect::<Vec<_>>());
}

/// Sealed texts of one length, each broken in another way.
fn broken(text: &[u8]) -> Vec<(&'static str, String)> {
    let right = STANDARD.decode(key('a').seal(text, "wx1", RANDOM)).unwrap();
    // A flipped bit garbles its block, and flips the same bit of the next one.
    let flipped = |place: usize| {
        let mut bytes = right.clone();
        bytes[place] ^= 1;
        STANDARD.encode(bytes)
    };
    vec![
        ("the AppID's first sign", key('a').seal(text, "ax1", RANDOM)),
        ("the AppID's last sign", key('a').seal(text, "wx2", RANDOM)),
        ("the padding's last byte", flipped(right.len() - 17)),
        ("the padding's first byte", flipped(right.len() - 16 - usize::from(padding(text)))),
        ("the length", flipped(3)),
        ("the key", key('b').seal(text, "wx1", RANDOM)),
    ]
}

/// Of a text for `wx1`; all texts here have one that lies in the last block.
fn padding(text: &[u8]) -> u8 {
    let pad = 32 - (20 + text.len() + 3) % 32;
    assert!(pad <= 16, "{pad}");
    pad as u8
}
