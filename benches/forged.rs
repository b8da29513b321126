//! The cost of a forged push relative to a valid one, in the relay's processor time.
//!
//! `cargo bench --bench forged [-- --seconds 3 --rounds 3]`
//!
//! In turn, over the same kept connections: a request that is refused by its path alone, which is the cost of HTTP; a
//! forged push of a valid one's size; a valid push, until it is delivered to one target. Each total includes the
//! kernel's work for its socket, which is most of a forged push and not the relay's. What is compared is the cost
//! beyond HTTP. Exit code 1 if that of a forged push is over a tenth of that of a valid one.

#![expect(clippy::expect_used, reason = "in a benchmark a failed expectation is the failure")]
// Each benchmark uses a part of it.
#[allow(dead_code)]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use support::argument;
use support::figures::median;
use support::relay::Relay;
use support::target::{Behaviour, Target};
use support::wechat::{WeChat, account, exchanges, forged};

const CONNECTIONS: usize = 16;
/// The encrypted text of a scan, roughly: 512 bytes in base64, before the `=` at its end.
const SEALED: usize = 683;

#[tokio::main]
async fn main() -> ExitCode {
    let (span, rounds) = (Duration::from_secs(argument("--seconds", 3)), argument("--rounds", 3));
    let (folder, app) = (tempfile::tempdir().expect("a temporary folder"), Target::start(Behaviour::Fast).await);
    let config = format!(
        "{}[[accounts.shop.routes]]\notherwise = true\nto = [\"app\"]\n[targets.app]\nurl = \"http://{}/\"\n",
        account(),
        app.address
    );
    let relay = Relay::start(folder.path(), "", &config).await;
    let wechat = WeChat::new();
    let body = format!(
        "<xml><ToUserName><![CDATA[gh_0]]></ToUserName><Encrypt><![CDATA[{}=]]></Encrypt></xml>",
        "A".repeat(SEALED)
    );
    let stranger = forged(&format!("Content-Length: {}\r\n", body.len()), body.as_bytes());
    let lost = b"GET /nowhere HTTP/1.1\r\nHost: relay.test\r\n\r\n".to_vec();

    let mut costs: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        for (kind, costs) in costs.iter_mut().enumerate() {
            let (before, delivered, end) = (relay.processor(), app.count(), Instant::now() + span);
            let go = move |_| Instant::now() < end;
            let count = match kind {
                0 => {
                    let lost = lost.clone();
                    exchanges(relay.push, CONNECTIONS, go, move || lost.clone(), "HTTP/1.1 404").await
                }
                1 => {
                    let stranger = stranger.clone();
                    exchanges(relay.push, CONNECTIONS, go, move || stranger.clone(), "HTTP/1.1 403").await
                }
                _ => wechat.flood(relay.push, CONNECTIONS, go).await,
            };
            while kind == 2 && app.count() < delivered + count {
                sleep(Duration::from_millis(10)).await;
            }
            costs.push((relay.processor() - before).as_secs_f64() * 1e6 / count as f64);
        }
    }
    let [http, forged, good] = costs.map(median);
    let (whole, beyond) = (forged / good, (forged - http) / (good - http));
    println!("medians of {rounds} rounds, processor time: {http:.1} us HTTP, {forged:.1} us forged, {good:.1} us good");
    println!("a forged push costs {whole:.3} of a good one, and {beyond:.3} of it beyond HTTP");
    if beyond < 0.1 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
