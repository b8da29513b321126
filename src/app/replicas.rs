//! Follows what happens at other replicas: operators act there, and they come and go.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::dispatcher::Dispatcher;
use crate::push::Pipeline;
use crate::queue::Share;

/// Acts on the pauses and the shares of the others, until `stop`.
pub(super) fn follow(
    pipeline: Arc<Pipeline>,
    dispatcher: Arc<Dispatcher>,
    shares: watch::Receiver<Share>,
    stop: CancellationToken,
) {
    let pauses = {
        let (dispatcher, stop) = (Arc::clone(&dispatcher), stop.clone());
        async move { stop.run_until_cancelled(dispatcher.follow_pauses()).await }
    };
    tokio::spawn(pauses);
    tokio::spawn(async move { stop.run_until_cancelled(divide(&pipeline, &dispatcher, shares)).await });
}

/// Divides among the live replicas what is limited for all of them.
async fn divide(pipeline: &Pipeline, dispatcher: &Dispatcher, mut shares: watch::Receiver<Share>) {
    while shares.changed().await.is_ok() {
        let share = *shares.borrow_and_update();
        dispatcher.divide(share);
        pipeline.divide(share);
    }
}
