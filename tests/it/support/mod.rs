//! Test support: a stand-in for WeChat, targets, and the built binary between them.
//!
//! Nothing here calls the crate under test, and nothing is shared between tests: each has its own relay, folder and
//! sockets on ports that the system chooses. Tests wait for a condition with a generous deadline, never for a fixed
//! time.

pub(crate) mod authority;
pub(crate) mod command;
pub(crate) mod hang;
pub(crate) mod http;
pub(crate) mod pages;
pub(crate) mod pebble;
pub(crate) mod postgres;
pub(crate) mod program;
pub(crate) mod proxy;
pub(crate) mod relay;
pub(crate) mod rust_source;
pub(crate) mod storm;
pub(crate) mod target;
pub(crate) mod wechat;

use std::time::Duration;

use tokio::time;

/// The deadline of every wait, generous enough for a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// The value of `future`; at the deadline, a failure that names what did not happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match time::timeout(TIMEOUT, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {TIMEOUT:?} in vain: {what}"),
    }
}

/// Polls until there is a value.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        let mut again = time::interval(Duration::from_millis(20));
        again.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            again.tick().await;
            if let Some(value) = ask().await {
                return value;
            }
        }
    })
    .await
}
