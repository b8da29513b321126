//! Whether the time of a refusal reveals its reason: Welch's t over pairs of refusals with the same answer, as in
//! dudect.
//!
//! `cargo bench --bench timing [-- --samples 200000]`
//!
//! Each pair is two sets of inputs that are wrong in different ways, tried in a random order on the code itself,
//! without a socket, where a difference would show first. The slowest tenth of the samples is left out: it is noise of
//! the machine. |t| above 10 is a difference, and the benchmark fails; above 4.5 it is worth a second run. Use an idle
//! machine; a difference on a busy machine is no finding.
//!
//! A wrong signature is not compared with a broken envelope: the first is refused before anything is decrypted, and the
//! sender of the second has signed it with the token.

#![expect(clippy::expect_used, reason = "in a benchmark a failed expectation is the failure")]
// Each benchmark uses a part of it.
#[allow(dead_code)]
mod support;

use std::hint::black_box;
use std::process::ExitCode;

use bytes::Bytes;
use tokio::time::Instant;
use wxrelay::secret::Secret;
use wxrelay::wechat::signature::signature;
use wxrelay::wechat::{AesKey, Credentials, Mode, Query};

use support::argument;

const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
const TIMESTAMP: &str = "1795161600";
const NONCE: &str = "1792106704";
/// Inputs of each kind, so that no single place in memory decides.
const INPUTS: usize = 64;
/// |t| from which two kinds of refusal are distinguishable.
const DIFFERENT: f64 = 10.0;

/// A query and a body.
type Input = (String, Bytes);

/// How an input is wrong.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    /// A digit of the signature.
    Digit(usize),
    /// The token.
    Token,
    /// The key.
    Key,
    /// The AppID, of the same length.
    AppId(&'static str),
    /// A bit of the byte at this distance from the end of the encrypted text; it changes the next block.
    Bit(usize),
    /// A bit of the length.
    Length,
}

const PAIRS: [(&str, Flaw, Flaw); 9] = [
    ("the same twice (the control)", Flaw::Digit(0), Flaw::Digit(0)),
    ("signature: first digit, last digit", Flaw::Digit(0), Flaw::Digit(39)),
    ("signature: first digit, another token", Flaw::Digit(0), Flaw::Token),
    ("envelope: AppID's first sign, its last", Flaw::AppId("ax1"), Flaw::AppId("wx2")),
    ("envelope: last padding byte, first", Flaw::Bit(17), Flaw::Bit(32)),
    ("envelope: padding, AppID", Flaw::Bit(17), Flaw::AppId("wx2")),
    ("envelope: padding, length", Flaw::Bit(17), Flaw::Length),
    ("envelope: padding, key", Flaw::Bit(17), Flaw::Key),
    ("envelope: length, AppID", Flaw::Length, Flaw::AppId("ax1")),
];

fn main() -> ExitCode {
    let samples = usize::try_from(argument("--samples", 200_000)).expect("a number of samples");
    let account = account();
    println!("{samples} samples of each kind; |t| above {DIFFERENT} is a difference");
    let mut alike = true;
    for (name, one, other) in PAIRS {
        let t = compare(&account, &inputs(one), &inputs(other), samples);
        alike &= t.abs() < DIFFERENT;
        println!("t = {t:>7.2}  {name}");
    }
    if alike { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Welch's t of two kinds of input.
fn compare(account: &Credentials, one: &[Input], other: &[Input], samples: usize) -> f64 {
    let mut times = [Vec::with_capacity(samples), Vec::with_capacity(samples)];
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    while times.iter().any(|times| times.len() < samples) {
        // xorshift64: which kind and which input must not follow a pattern that a cache could learn.
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let kind = usize::from(dice & 1 == 1);
        let (query, body) = &[one, other][kind][(dice >> 8) as usize % INPUTS];
        let query = Query::parse(query).expect("a sound query");
        let begun = Instant::now();
        let refused = black_box(account.open(black_box(&query), black_box(body)));
        let took = begun.elapsed().as_nanos() as f64;
        assert!(refused.is_err());
        if times[kind].len() < samples {
            times[kind].push(took);
        }
    }
    let mut all: Vec<_> = times.concat();
    all.sort_unstable_by(f64::total_cmp);
    let longest = all[all.len() / 10 * 9];
    let [one, other] = times.map(|times| moments(times.into_iter().filter(|took| *took <= longest)));
    (one.0 - other.0) / (one.1 + other.1).sqrt()
}

/// The mean, and the square of its error.
fn moments(times: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for took in times {
        count += 1.0;
        let away = took - mean;
        mean += away / count;
        squares += away * (took - mean);
    }
    (mean, squares / (count - 1.0) / count)
}

fn inputs(wrong: Flaw) -> Vec<Input> {
    let input = |number: usize| {
        let random: [u8; 16] = format!("{number:016x}").into_bytes().try_into().expect("16 digits");
        // 16 + 4 + 601 + 3 bytes, so that the padding is 16 and lies in one block of AES.
        let (text, key) = ([b'x'; 601], AesKey::parse(KEY).expect("a key"));
        let encrypt = match wrong {
            Flaw::Digit(_) | Flaw::Token => key.seal(&text, "wx1", random),
            Flaw::Key => AesKey::parse(&KEY.replace('a', "b")).expect("a key").seal(&text, "wx1", random),
            Flaw::AppId(app_id) => key.seal(&text, app_id, random),
            Flaw::Bit(from_end) => flipped(&key.seal(&text, "wx1", random), |length| length - from_end),
            Flaw::Length => flipped(&key.seal(&text, "wx1", random), |_| 3),
        };
        let token = if let Flaw::Token = wrong { "another" } else { "weixin" };
        let mut given = signature([token, TIMESTAMP, NONCE, &encrypt]);
        if let Flaw::Digit(place) = wrong {
            let digit = if &given[place..=place] == "0" { "1" } else { "0" };
            given.replace_range(place..=place, digit);
        }
        let query = format!("timestamp={TIMESTAMP}&nonce={NONCE}&encrypt_type=aes&msg_signature={given}");
        (query, Bytes::from(format!("<xml><Encrypt><![CDATA[{encrypt}]]></Encrypt></xml>")))
    };
    (0..INPUTS).map(input).collect()
}

fn flipped(encrypt: &str, place: impl Fn(usize) -> usize) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let mut bytes = STANDARD.decode(encrypt).expect("base64");
    let place = place(bytes.len());
    bytes[place] ^= 1;
    STANDARD.encode(bytes)
}

fn account() -> Credentials {
    Credentials {
        app_id: "wx1".into(),
        token: Secret::new("weixin"),
        previous_token: None,
        aes_key: Some(AesKey::parse(KEY).expect("a key")),
        previous_aes_key: None,
        mode: Mode::Secure,
    }
}
