//! A session for one purpose: connected when it is needed, left when it is of no more use, and connected again.
//!
//! Bounded: at most one session at a time is connected, and before a new one is, what was left at the server in the
//! middle of a call is ended there. Otherwise each try would leave one more process waiting for a standby that is away,
//! until the server has no connection free.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_postgres::types::Type;
use tokio_util::task::AbortOnDropHandle;

use super::connect::{Connector, interrupted};
use super::failure::Failure;
use super::session::{Session, SessionFacts, Value};

/// How long after a failed connect the next one is tried; doubled at each further one, so that a server that has no
/// connection free is not kept busy with refusing us.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Short enough for a new primary to be found within a second of its promotion.
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// Ends a process of the server that we left; the time it began makes sure that it is still ours.
const END_PROCESS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE pid = $1 AND usename = current_user AND extract(epoch FROM backend_start)::text = $2";

/// What is done with a new session before it is used: beside the calls, so that none of them pays for it.
pub(super) type Preparation = for<'s> fn(&'s Session) -> Preparing<'s>;

/// A preparation under way.
pub(super) type Preparing<'s> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 's>>;

/// A session for one purpose.
#[derive(Debug)]
pub struct PinnedSession {
    connector: Connector,
    prepare: Option<Preparation>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    session: Option<Session>,
    /// The process of a session that was left in the middle of a call.
    left: Option<SessionFacts>,
    /// Connects, beside the calls: one that gives up earlier than a connect can be made would never be made.
    connecting: Option<AbortOnDropHandle<Result<Session, Failure>>>,
    /// How long the next connect waits.
    pause: Duration,
}

impl PinnedSession {
    /// Connects nothing yet.
    pub fn new(connector: Connector) -> Self {
        Self { connector, prepare: None, state: Mutex::default() }
    }

    /// As [`PinnedSession::new`], with a preparation of each new session.
    pub(super) fn prepared(connector: Connector, prepare: Preparation) -> Self {
        Self { prepare: Some(prepare), ..Self::new(connector) }
    }

    /// Makes a call within `budget`, which includes the wait for an earlier call to end and the connect.
    ///
    /// If this future is dropped in the middle, the session is left, and the outcome is as unknown as after a timeout.
    ///
    /// # Errors
    /// Those of `call`; [`Failure::Away`] if there is no connection, [`Failure::Busy`] if there was none in the first half
    /// of the time, [`Failure::Unknown`] when the time is over.
    pub async fn call<T>(
        &self,
        budget: Duration,
        call: impl AsyncFnOnce(&mut Session) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + budget;
        let over = || Failure::Unknown(format!("no answer within {} ms", budget.as_millis()));
        let Ok(mut state) = timeout_at(deadline, self.state.lock()).await else { return Err(Failure::Busy) };
        let Ok(session) = timeout_at(deadline, state.take_session(&self.connector, self.prepare)).await else {
            return Err(Failure::Busy);
        };
        let mut session = session?;
        // After a slow connect, the next call has all its time for itself: else each could be too late by a little.
        if deadline - Instant::now() < budget / 2 {
            state.session = Some(session);
            return Err(Failure::Busy);
        }
        // Until the call has ended, nobody else finds the session; if it is left, its process is known.
        state.left = Some(session.facts().clone());
        let outcome = timeout_at(deadline, call(&mut session)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(over()));
        if session.is_usable() && !matches!(outcome, Err(Failure::Unknown(_))) {
            state.left = None;
            state.session = Some(session);
        }
        outcome
    }
}

impl State {
    async fn take_session(&mut self, connector: &Connector, prepare: Option<Preparation>) -> Result<Session, Failure> {
        if let Some(session) = self.session.take().filter(Session::is_usable) {
            return Ok(session);
        }
        let connecting = self.connecting.get_or_insert_with(|| {
            let (connector, left, not_before) = (connector.clone(), self.left.clone(), Instant::now() + self.pause);
            AbortOnDropHandle::new(tokio::spawn(async move {
                sleep_until(not_before).await;
                connect(&connector, left, prepare).await
            }))
        });
        let connected = connecting.await;
        self.connecting = None;
        let connected = connected.unwrap_or_else(|error| Err(interrupted(error, connector.settings()).into()));
        self.pause = match &connected {
            Ok(_) => Duration::ZERO,
            Err(_) => (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE),
        };
        let session = connected?;
        self.left = None;
        Ok(session)
    }
}

/// Connects, ends the process that was left, and prepares the session.
async fn connect(
    connector: &Connector,
    left: Option<SessionFacts>,
    prepare: Option<Preparation>,
) -> Result<Session, Failure> {
    let session = connector.connect().await?;
    if let Some(left) = left
        && !connector.settings().pooler
    {
        let values: [Value<'_>; 2] = [(&left.process, Type::INT4), (&left.started, Type::TEXT)];
        session.query(END_PROCESS, &values).await?;
    }
    if let Some(prepare) = prepare {
        prepare(&session).await?;
    }
    Ok(session)
}
