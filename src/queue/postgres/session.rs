//! One session at PostgreSQL: what its calls promise, with and without a pooler between.
//!
//! - A call returns `Ok` only when its commit is confirmed, by the synchronous standby too. PostgreSQL reports a commit
//!   as done, with a warning, when its wait for the standby is cancelled: so a warning that arrives during a call makes
//!   the outcome unknown. It is not compared with any text: texts are translated.
//! - A transaction is sent whole, in one flush: a call that is dropped has sent its COMMIT or nothing, so nothing stays
//!   open, and a transaction costs one round trip.
//! - Nothing here cancels a statement: what takes too long is left, with its session (`PinnedSession`).

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Connection, Error as PgError, Row, SimpleQueryMessage, Statement};

use super::failure::{self, Failure};
use super::settings::{Address, Settings};
use super::stream::Stream;

/// A value of a statement, and its type.
pub type Value<'a> = (&'a (dyn ToSql + Sync), Type);

/// A statement with its values. Table names have no schema: `search_path` is set.
#[derive(Clone, Copy, Debug)]
pub struct BoundQuery<'a> {
    /// The text, by whose address prepared statements are found.
    pub sql: &'static str,
    /// `$1` and on.
    pub values: &'a [Value<'a>],
}

/// What a session's server said when it was connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFacts {
    /// As `server_version_num`: 150018 is 15.18.
    pub version: u32,
    /// Whether commits wait for a synchronous standby.
    pub has_standby: bool,
    /// The setting by which a confirmed commit can be lost, where that was accepted.
    pub weakness: Option<&'static str>,
    /// The number of the server's process, and when it began: together they are unique.
    pub(super) process: i32,
    pub(super) started: String,
}

/// One session. Calls may overlap: they are executed in the order in which they were begun.
#[derive(Debug)]
pub struct Session {
    client: Client,
    address: Address,
    /// With a pooler: begins each transaction with the settings. Without one: just begins it.
    begin: String,
    is_pooled: bool,
    /// Statements by the address of their text.
    prepared: Mutex<HashMap<(usize, usize), Statement>>,
    notices: Arc<Notices>,
    is_usable: AtomicBool,
    driver: AbortHandle,
    pub(super) facts: SessionFacts,
}

/// What the server said beside its answers.
#[derive(Debug, Default)]
struct Notices {
    warnings: AtomicU64,
    last: Mutex<String>,
}

impl Notices {
    fn note(&self, notice: &DbError) {
        let is_warning = !matches!(
            notice.parsed_severity(),
            Some(Severity::Notice | Severity::Info | Severity::Log | Severity::Debug)
        );
        if is_warning {
            *self.last.lock() = format!("{} (SQLSTATE {})", notice.message(), notice.code().code());
            // Before the answer that follows it is given to its call: by the same task, through a channel.
            self.warnings.fetch_add(1, Ordering::Release);
        }
    }

    fn count(&self) -> u64 {
        self.warnings.load(Ordering::Acquire)
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, PgError>> + Send + 'a>>;

/// A future of a pipeline, and its result once it is there.
struct Step<'a, T> {
    answer: Answer<'a, T>,
    result: Option<Result<T, PgError>>,
}

impl<'a, T> Step<'a, T> {
    fn new(answer: impl Future<Output = Result<T, PgError>> + Send + 'a) -> Self {
        Self { answer: Box::pin(answer), result: None }
    }

    /// Whether it is done.
    fn poll(&mut self, context: &mut Context<'_>) -> bool {
        if self.result.is_none()
            && let Poll::Ready(result) = self.answer.as_mut().poll(context)
        {
            self.result = Some(result);
        }
        self.result.is_some()
    }
}

impl Session {
    /// Takes over a connection that is logged in.
    pub(super) fn start(
        client: Client,
        connection: Connection<Stream, Stream>,
        settings: &Settings,
        address: Address,
    ) -> Self {
        let notices = Arc::new(Notices::default());
        let driver = tokio::spawn(drive(connection, notices.clone())).abort_handle();
        let begin = if settings.pooler { begin(settings) } else { BEGIN.to_owned() };
        Self {
            client,
            address,
            begin,
            is_pooled: settings.pooler,
            prepared: Mutex::default(),
            notices,
            is_usable: AtomicBool::new(true),
            driver,
            facts: SessionFacts::default(),
        }
    }

    /// What the server said when it was connected.
    pub fn facts(&self) -> &SessionFacts {
        &self.facts
    }

    /// The server.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether further calls can be made.
    pub fn is_usable(&self) -> bool {
        self.is_usable.load(Ordering::Relaxed) && !self.client.is_closed()
    }

    /// Executes one statement, in a transaction of its own.
    ///
    /// # Errors
    /// Unless its commit is confirmed.
    pub async fn query(&self, sql: &'static str, values: &[Value<'_>]) -> Result<Vec<Row>, Failure> {
        if self.is_pooled {
            return first(self.transact("", &[BoundQuery { sql, values }]).await?);
        }
        self.check_usable()?;
        let statement = self.prepare(sql, values).await?;
        let plain: Vec<_> = values.iter().map(|(value, _)| *value).collect();
        self.judge(self.client.query(&statement, &plain)).await
    }

    /// As [`Session::query`], for a statement whose text is made when it is needed: nothing is kept of it.
    ///
    /// # Errors
    /// Unless its commit is confirmed.
    pub async fn query_once(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Failure> {
        self.check_usable()?;
        if self.is_pooled {
            return first(self.pipeline("", vec![Step::new(self.client.query_typed(sql, values))]).await?);
        }
        self.judge(self.client.query_typed(sql, values)).await
    }

    /// Executes statements in one transaction, after `setup`: text that is sent as it is, for example a lock that must
    /// be held before the statements' snapshots. Returns the rows of each.
    ///
    /// # Errors
    /// Unless the commit is confirmed.
    pub async fn transact(&self, setup: &str, queries: &[BoundQuery<'_>]) -> Result<Vec<Vec<Row>>, Failure> {
        self.check_usable()?;
        let mut steps = Vec::with_capacity(queries.len());
        for BoundQuery { sql, values } in queries {
            steps.push(if self.is_pooled {
                Step::new(self.client.query_typed(sql, values))
            } else {
                let statement = self.prepare(sql, values).await?;
                let plain: Vec<_> = values.iter().map(|(value, _)| *value).collect();
                Step::new(async move { self.client.query(&statement, &plain).await })
            });
        }
        self.pipeline(setup, steps).await
    }

    /// Returns when everything that this session sees is confirmed, by the synchronous standby too. A statement that has
    /// changed nothing waits for nobody, although what it stands on may have been committed by a transaction whose own
    /// wait was cut off.
    ///
    /// # Errors
    /// Unless it is confirmed.
    pub(super) async fn confirm_earlier(&self) -> Result<(), Failure> {
        self.query(CONFIRM, &[]).await.map(drop)
    }

    /// Begins a transaction that reads one state of the tables.
    ///
    /// # Errors
    /// If it cannot be begun.
    pub async fn snapshot(&mut self) -> Result<Snapshot<'_>, Failure> {
        self.check_usable()?;
        // Readers may need a while between two queries, and read whole tables.
        let begin = format!(
            "{}SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;SET LOCAL enable_seqscan = on;\
             SET LOCAL idle_in_transaction_session_timeout = '5min'",
            self.begin
        );
        let snapshot = Snapshot { session: self, has_ended: false };
        snapshot.session.judge(snapshot.session.client.batch_execute(&begin)).await?;
        Ok(snapshot)
    }

    /// Executes a text of several statements, by the simple protocol. Without BEGIN in it, it is one transaction. With a
    /// pooler between it has none of our settings: name the schema in it.
    ///
    /// # Errors
    /// Unless it is confirmed.
    pub async fn execute_script(&self, sql: &str) -> Result<Vec<SimpleQueryMessage>, Failure> {
        self.check_usable()?;
        self.judge(self.run_script(sql)).await
    }

    pub(super) async fn run_script(&self, sql: &str) -> Result<Vec<SimpleQueryMessage>, PgError> {
        self.client.simple_query(sql).await
    }

    /// Sends everything between BEGIN and COMMIT in one flush.
    async fn pipeline<T>(&self, setup: &str, mut steps: Vec<Step<'_, T>>) -> Result<Vec<T>, Failure> {
        let begin = format!("{}{setup}", self.begin);
        let work = async {
            let mut begin = Step::new(self.client.batch_execute(&begin));
            let mut end: Option<Step<'_, ()>> = None;
            poll_fn(|context| {
                let mut is_done = begin.poll(context);
                for step in &mut steps {
                    is_done &= step.poll(context);
                }
                // Made when all steps have been polled, and so sent. One that has failed by then could not be.
                let end = end.get_or_insert_with(|| {
                    let is_sent = steps.iter().all(|step| !matches!(step.result, Some(Err(_))));
                    Step::new(self.client.batch_execute(if is_sent { "COMMIT" } else { "ROLLBACK" }))
                });
                if end.poll(context) && is_done { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            // The first error is the cause of the others.
            begin.result.transpose()?;
            let answers = steps.into_iter().filter_map(|step| step.result).collect::<Result<Vec<T>, _>>()?;
            end.and_then(|end| end.result).transpose()?;
            Ok(answers)
        };
        self.judge(work).await
    }

    async fn prepare(&self, sql: &'static str, values: &[Value<'_>]) -> Result<Statement, Failure> {
        let address = (sql.as_ptr() as usize, sql.len());
        if let Some(statement) = self.prepared.lock().get(&address) {
            return Ok(statement.clone());
        }
        self.keep_prepared(sql, self.client.prepare_typed(sql, &types_of(values)).await)
    }

    /// Prepares statements in one round trip; their values count by their types alone.
    ///
    /// # Errors
    /// If one cannot be prepared.
    pub(super) async fn prepare_ahead(&self, queries: &[BoundQuery<'_>]) -> Result<(), Failure> {
        if self.is_pooled {
            return Ok(());
        }
        let prepare = |query: &BoundQuery<'_>| {
            let (sql, types) = (query.sql, types_of(query.values));
            Step::new(async move { self.client.prepare_typed(sql, &types).await })
        };
        let mut steps: Vec<_> = queries.iter().map(prepare).collect();
        poll_fn(|context| {
            // All are sent before the first answer is awaited.
            let waiting = steps.iter_mut().filter_map(|step| (!step.poll(context)).then_some(())).count();
            if waiting == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let results = steps.into_iter().filter_map(|step| step.result);
        queries.iter().zip(results).try_for_each(|(query, result)| self.keep_prepared(query.sql, result).map(drop))
    }

    fn keep_prepared(&self, sql: &'static str, result: Result<Statement, PgError>) -> Result<Statement, Failure> {
        let statement = result.map_err(|error| {
            let failure = error.as_db_error().map_or_else(|| failure::lost(&self.address), Failure::from);
            self.note_failure(failure)
        })?;
        self.prepared.lock().insert((sql.as_ptr() as usize, sql.len()), statement.clone());
        Ok(statement)
    }

    fn check_usable(&self) -> Result<(), Failure> {
        if self.is_usable() { Ok(()) } else { Err(failure::lost(&self.address)) }
    }

    /// The outcome of a call.
    async fn judge<T>(&self, call: impl Future<Output = Result<T, PgError>>) -> Result<T, Failure> {
        let before = self.notices.count();
        match call.await {
            Ok(answer) if self.notices.count() == before => Ok(answer),
            Ok(_) => Err(self.note_failure(Failure::Unknown(self.notices.last.lock().clone()))),
            Err(error) => Err(self.note_failure(Failure::from(error))),
        }
    }

    fn note_failure(&self, failure: Failure) -> Failure {
        if !failure.spares_session() {
            self.discard();
        }
        failure
    }

    /// No further call is made.
    fn discard(&self) {
        self.is_usable.store(false, Ordering::Relaxed);
    }
}

impl Drop for Session {
    /// Closes the connection at once, whatever it waits for.
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A transaction that reads one state of the tables. [`Snapshot::end`] it: a session whose snapshot is dropped is not
/// used again.
#[derive(Debug)]
pub struct Snapshot<'a> {
    session: &'a Session,
    has_ended: bool,
}

impl Snapshot<'_> {
    /// Executes a query.
    ///
    /// # Errors
    /// If it fails; then the snapshot has ended.
    pub async fn query(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Failure> {
        self.session.check_usable()?;
        let answer = self.session.judge(self.session.client.query_typed(sql, values)).await;
        if answer.is_err() {
            // The transaction has failed, or is in the middle of an answer.
            self.session.discard();
        }
        answer
    }

    /// Ends it.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn end(mut self) -> Result<(), Failure> {
        self.session.check_usable()?;
        self.session.judge(self.session.client.batch_execute("COMMIT")).await?;
        self.has_ended = true;
        Ok(())
    }
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.session.discard();
        }
    }
}

/// Reads what the server says, until the connection ends.
async fn drive(mut connection: Connection<Stream, Stream>, notices: Arc<Notices>) {
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notice(notice) = message {
            notices.note(&notice);
        }
    }
}

fn types_of(values: &[Value<'_>]) -> Vec<Type> {
    values.iter().map(|(_, of)| of.clone()).collect()
}

fn first(rows: Vec<Vec<Row>>) -> Result<Vec<Row>, Failure> {
    Ok(rows.into_iter().next().unwrap_or_default())
}

/// A line of the log: when its commit is confirmed, so is all before it. An ordinary role may write it.
const CONFIRM: &str = "SELECT pg_logical_emit_message(true, 'wxrelay', '')::text";

const BEGIN: &str = "BEGIN;";

/// What every transaction of ours relies on; the defaults of a role or a database may be others.
fn settings_of(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut list = vec![
        ("search_path", settings.schema.clone()),
        ("synchronous_commit", "on".to_owned()),
        // Else the warning of a cancelled wait for the standby would not be sent.
        ("client_min_messages", "warning".to_owned()),
        // Our own clock is the only one: a statement that the server cancels may be committed or not.
        ("statement_timeout", "0".to_owned()),
        ("lock_timeout", "'10s'".to_owned()),
        ("idle_in_transaction_session_timeout", "'2s'".to_owned()),
        ("jit", "off".to_owned()),
        // Each hot statement has its index, also while the statistics say that its tables are empty.
        ("enable_seqscan", "off".to_owned()),
    ];
    if !settings.pooler {
        list.extend([
            ("default_transaction_isolation", "'read committed'".to_owned()),
            ("plan_cache_mode", "force_generic_plan".to_owned()),
            // An idle session is one that waits for its next call.
            ("idle_session_timeout", "0".to_owned()),
            // Ends what we have left, for example in a wait for a lock.
            ("client_connection_check_interval", "'2s'".to_owned()),
        ]);
    }
    list
}

/// Sets a session of our own up.
pub(super) fn session_settings(settings: &Settings) -> String {
    settings_of(settings).iter().map(|(name, value)| format!("SET {name} = {value};")).collect()
}

/// Begins a transaction with our settings, in a session that others use too.
pub(super) fn begin(settings: &Settings) -> String {
    let local = settings_of(settings);
    let local = local.iter().map(|(name, value)| format!("SET LOCAL {name} = {value};"));
    format!("BEGIN ISOLATION LEVEL READ COMMITTED;{}", local.collect::<String>())
}
