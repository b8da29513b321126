//! The PROXY protocol's header: what follows it comes through unchanged, however it is split into packets, and the same
//! bytes give the same address. Never a panic, and never more is read ahead than a header may have.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wxrelay::server::{Peer, proxied};

fuzz_target!(|bytes: &[u8]| {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    // Version 1 ends within 107 bytes. When a longer one is refused depends on what has come by then; from a trusted
    // load balancer there is none.
    if bytes.starts_with(b"PROXY") && !bytes[..bytes.len().min(107)].windows(2).any(|end| end == b"\r\n") {
        return;
    }
    let whole = taken(bytes, bytes.len());
    let parts = taken(bytes, usize::from(cut) * bytes.len() / 256);
    assert_eq!(whole, parts, "the cut makes a difference");
    if let Some((_, rest)) = whole {
        assert!(bytes.ends_with(&rest), "what follows is changed");
    }
});

/// The address in the header, and the bytes after it.
fn taken(bytes: &[u8], cut: usize) -> Option<(Option<std::net::IpAddr>, Vec<u8>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let (first, second) = bytes.split_at(cut);
        let send = async move {
            // An error means that the other end has closed.
            if near.write_all(first).await.is_ok() {
                tokio::task::yield_now().await;
                near.write_all(second).await.ok();
            }
        };
        let receive = async move {
            let balancer = Peer(Some([10, 0, 0, 1].into()));
            let (mut stream, peer) =
                proxied::read_header(far, balancer, &["10.0.0.0/8".parse().expect("a network")]).await.ok()?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok()?;
            Some((peer.0, rest))
        };
        tokio::join!(send, receive).1
    })
}
