//! What a simulation replaces around an attempt, and what it can observe of one: separate for each thread.

use std::cell::{Cell, RefCell};

type Jitter = Box<dyn FnMut() -> f64>;

thread_local! {
    static JITTER: RefCell<Option<Jitter>> = const { RefCell::new(None) };
    static PROBE: Cell<bool> = const { Cell::new(false) };
}

/// The source of jitter on this thread; `None` = random.
pub(crate) fn set_jitter(jitter: Option<Jitter>) {
    JITTER.set(jitter);
}

/// Whether the attempt that reaches its target now is a probe.
pub(crate) fn is_probe() -> bool {
    PROBE.get()
}

pub(super) fn set_probe(probe: bool) {
    PROBE.set(probe);
}

pub(super) fn jitter() -> Option<f64> {
    JITTER.with_borrow_mut(|jitter| jitter.as_mut().map(|next| next()))
}
