-- The stored form of the embedded engine, version 6 (`PRAGMA user_version`). `migrations/` leads from older ones to it.
--
-- event.id        43 bits of milliseconds, 20 bits of sequence; evt_ and 16 hex digits for people.
-- event.mode      the account's mode: 0 plaintext, 1 compatible, 2 secure.
-- event.clear     the clear text; NULL where it equals `body`.
-- known.event     the event of that `content_key`, for the events up to `known_until.event`: the later ones are few, and
--                 in memory (dedup_index.rs). Makes a second push of a text a duplicate.
-- retired_key     the content keys of deleted events that are still in `known`, because a copy of their push would still be
--                 accepted: deleted from both once the replay window is over.
-- event.targets   how many deliveries were stored with it: what the audit counts against.
-- event.reply     the clear passive reply it was answered with; a repeated push gets it again.
-- event.from_user FromUserName; if the text names other persons, these follow, with char(31) between them (persons.rs).
-- event.key       the number of the key that its `query`, `body`, `clear` and `reply` and the `answer` of its attempts
--                 are encrypted with, each then as a BLOB (queue/encryption.rs); NULL: all of them are in the clear. The
--                 other columns are never encrypted: events are found by them.
-- event.checksum  a CRC-32 of what is delivered of the row, compared before each delivery (checksum.rs); of the reply,
--                 `reply_checksum`. NULL in rows of earlier schemas.
-- key.fingerprint the first 8 bytes of SHA-256 over `wxrelay queue.encryption_keys` and the key.
-- delivery.state  0 pending, 1 delivered, 2 dead, 3 expired, 4 cancelled.
-- delivery.failures  failed attempts since the retry schedule last started; `attempts` counts them all.
-- delivery.user   for targets that keep order: the user's number, 8 bytes of a hash; NULL for the others. While one
--                 delivery of a user is pending, later ones are held: their due time is the end of time until the
--                 previous one has ended.
-- held_reply      what became of the replies of accounts with `held_replies`, `no` counting those to an event.
--                 `state`: 0 one may still come, 1 sent, 2 held, 3 picked up, 4 superseded, 5 dropped, 6 expired, 7 none
--                 came. `attempt`, `at`: which attempt gave it. `taken`: how many bytes of its text the user has.
--                 `expires_at`: while it may be asked for. `picked_by`: the last message that got it. `user`: the OpenID.
--                 `content`: all of it while it is held, encrypted like its event; `checksum` is of it.
-- target.paused   1 while an operator has paused it.
-- tally           the running tally: deliveries per target and state, kept in the transactions that change them;
--                 target 0 counts the events at state 0 and the accepted deliveries at state 1, target -1 the
--                 given replies at state 0 and at each state of theirs. Makes statistics cheap, and the audit has two
--                 sources.
--
-- Times are milliseconds since 1970 UTC, durations microseconds. Texts and bodies stand last in their row, so that a
-- scan over the columns before them does not read them. There are no foreign keys: an event goes with all its rows in
-- one transaction (removal.rs), and a check per row would slow every push.
--
-- The views `events`, `deliveries`, `attempts` and `replies` are for operators with the sqlite3 shell: read them, never write.

CREATE TABLE event (
  id          INTEGER PRIMARY KEY,
  content_key BLOB    NOT NULL,
  targets     INTEGER NOT NULL,
  mode        INTEGER NOT NULL,
  received_at INTEGER NOT NULL,
  account     TEXT    NOT NULL,
  app_id      TEXT    NOT NULL,
  msg_type    TEXT    NOT NULL,
  event       TEXT    NOT NULL,
  event_key   TEXT    NOT NULL,
  from_user   TEXT    NOT NULL,
  traceparent TEXT,
  reply       TEXT,
  query       TEXT    NOT NULL,
  body        BLOB    NOT NULL,
  clear       BLOB,
  key         INTEGER,
  checksum    INTEGER,
  reply_checksum INTEGER
);

CREATE TABLE known (
  content_key BLOB    PRIMARY KEY,
  event       INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE known_until (
  event INTEGER NOT NULL
);

INSERT INTO known_until VALUES (0);

CREATE TABLE retired_key (
  event       INTEGER PRIMARY KEY,
  content_key BLOB    NOT NULL
);

CREATE TABLE key (
  no          INTEGER PRIMARY KEY,
  fingerprint BLOB    NOT NULL UNIQUE
);

CREATE TABLE target (
  no     INTEGER PRIMARY KEY,
  name   TEXT    NOT NULL UNIQUE,
  paused INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE delivery (
  event    INTEGER NOT NULL,
  target   INTEGER NOT NULL,
  state    INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  due      INTEGER NOT NULL,
  ended_at INTEGER,
  user     INTEGER,
  PRIMARY KEY (event, target)
) WITHOUT ROWID;

CREATE INDEX delivery_pending ON delivery (target, due, event) WHERE state = 0;
CREATE INDEX delivery_user ON delivery (target, user, event) WHERE state = 0 AND user IS NOT NULL;
CREATE INDEX delivery_dead ON delivery (target, event) WHERE state = 2;

CREATE TABLE attempt (
  event       INTEGER NOT NULL,
  target      INTEGER NOT NULL,
  number      INTEGER NOT NULL,
  at          INTEGER NOT NULL,
  duration_us INTEGER NOT NULL,
  status      INTEGER,
  error       TEXT,
  answer      BLOB,
  PRIMARY KEY (event, target, number)
) WITHOUT ROWID;

CREATE TABLE held_reply (
  event      INTEGER NOT NULL,
  no         INTEGER NOT NULL,
  target     INTEGER NOT NULL,
  state      INTEGER NOT NULL,
  attempt    INTEGER,
  at         INTEGER,
  taken      INTEGER NOT NULL DEFAULT 0,
  expires_at INTEGER,
  picked_by  INTEGER,
  account    TEXT    NOT NULL,
  user       TEXT    NOT NULL,
  checksum   INTEGER,
  content    BLOB,
  PRIMARY KEY (event, no)
) WITHOUT ROWID;

CREATE INDEX held_reply_user ON held_reply (account, user) WHERE expires_at IS NOT NULL;
CREATE INDEX held_reply_picked ON held_reply (picked_by) WHERE picked_by IS NOT NULL;
CREATE INDEX held_reply_expiry ON held_reply (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE tally (
  target INTEGER NOT NULL,
  state  INTEGER NOT NULL,
  count  INTEGER NOT NULL,
  PRIMARY KEY (target, state)
) WITHOUT ROWID;

CREATE VIEW events AS
SELECT printf('evt_%016x', id) AS id,
       strftime('%Y-%m-%dT%H:%M:%S', received_at / 1000, 'unixepoch') || printf('.%03dZ', received_at % 1000)
         AS received_at,
       account, msg_type, event, event_key, from_user, targets,
       CASE mode WHEN 0 THEN 'plaintext' WHEN 1 THEN 'compatible' WHEN 2 THEN 'secure' END AS mode,
       CASE WHEN key IS NULL THEN CAST(coalesce(clear, body) AS TEXT) ELSE 'sealed' END AS text,
       CASE WHEN key IS NULL OR reply IS NULL THEN reply ELSE 'sealed' END AS reply
  FROM event;

CREATE VIEW deliveries AS
SELECT printf('evt_%016x', d.event) AS event, t.name AS target,
       CASE d.state WHEN 0 THEN 'pending' WHEN 1 THEN 'delivered' WHEN 2 THEN 'dead' WHEN 3 THEN 'expired'
                    WHEN 4 THEN 'cancelled' END AS state,
       d.attempts, d.failures,
       CASE d.due WHEN 9223372036854775807 THEN 'held' ELSE
         strftime('%Y-%m-%dT%H:%M:%S', d.due / 1000, 'unixepoch') || printf('.%03dZ', d.due % 1000) END AS due,
       strftime('%Y-%m-%dT%H:%M:%S', d.ended_at / 1000, 'unixepoch') || printf('.%03dZ', d.ended_at % 1000) AS ended_at
  FROM delivery d LEFT JOIN target t ON t.no = d.target;

CREATE VIEW attempts AS
SELECT printf('evt_%016x', a.event) AS event, t.name AS target, a.number,
       strftime('%Y-%m-%dT%H:%M:%S', a.at / 1000, 'unixepoch') || printf('.%03dZ', a.at % 1000) AS at,
       a.duration_us / 1000.0 AS duration_ms, a.status, a.error,
       CASE WHEN e.key IS NULL OR a.answer IS NULL THEN CAST(a.answer AS TEXT) ELSE 'sealed' END AS answer
  FROM attempt a LEFT JOIN target t ON t.no = a.target LEFT JOIN event e ON e.id = a.event;

CREATE VIEW replies AS
SELECT printf('evt_%016x', r.event) AS event, r.no, t.name AS target, r.attempt,
       CASE r.state WHEN 0 THEN 'awaited' WHEN 1 THEN 'sent' WHEN 2 THEN 'held' WHEN 3 THEN 'picked_up'
                    WHEN 4 THEN 'superseded' WHEN 5 THEN 'dropped' WHEN 6 THEN 'expired' WHEN 7 THEN 'none' END AS state,
       strftime('%Y-%m-%dT%H:%M:%S', r.at / 1000, 'unixepoch') || printf('.%03dZ', r.at % 1000) AS at,
       strftime('%Y-%m-%dT%H:%M:%S', r.expires_at / 1000, 'unixepoch') || printf('.%03dZ', r.expires_at % 1000)
         AS expires_at,
       CASE WHEN r.picked_by IS NOT NULL THEN printf('evt_%016x', r.picked_by) END AS picked_by,
       r.taken, r.account, r.user,
       CASE WHEN e.key IS NULL OR r.content IS NULL THEN CAST(r.content AS TEXT) ELSE 'sealed' END AS content
  FROM held_reply r LEFT JOIN target t ON t.no = r.target LEFT JOIN event e ON e.id = r.event;
