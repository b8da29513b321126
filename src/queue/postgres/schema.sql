-- The stored form of the PostgreSQL engine, version 3 (`meta.schema`). As the embedded engine's (queue/sqlite/schema.sql),
-- with what several replicas need. The relay runs this with `search_path` set to its schema.
--
-- meta            one row. `oldest_reader`: the oldest version that a release must know to use these tables. `change`
--                 grows with every action of an operator, so that each replica notices.
-- replica         the live replicas. `alive_at` is by this server's clock. `seen`: the `meta.change` that it has acted on.
--                 `config`: a hash of what must be equal everywhere. `keys`: fingerprints of its encryption keys. `admin`:
--                 where its admin listener is. `schema`: the version that its release knows.
-- event.id        43 bits of milliseconds, 6 bits of the replica's slot, 14 bits of sequence; evt_ and 16 hex digits for
--                 people.
-- event.mode      the account's mode: 0 plaintext, 1 compatible, 2 secure.
-- event.clear     the clear text; NULL where it equals `body`.
-- event.targets   how many deliveries were stored with it: what the audit counts against.
-- event.reply     the clear passive reply it was answered with; a repeated push gets it again.
-- event.asking_until  until when the replica that received it may still get a reply for it from a target; 0: it does not
--                 wait for one.
-- event.from_user FromUserName; if the text names other persons, these follow, with chr(31) between them.
-- event.key       the number of the key that its `query`, `body`, `clear` and `reply` and the `answer` of its attempts are
--                 encrypted with; NULL: all of them are in the clear. The other columns are never encrypted.
-- event.checksum  a CRC-32 of what is delivered of the row, compared before each delivery; of the reply, `reply_checksum`.
-- known           makes a second push of a text a duplicate.
-- retired_key     the content keys of deleted events that are still in `known`, because a copy of their push would still be
--                 accepted: deleted from both once the replay window is over.
-- key.fingerprint the first 8 bytes of SHA-256 over `wxrelay queue.encryption_keys` and the key.
-- held_reply      what became of the replies of accounts with `held_replies`, `no` counting those to an event. `state`: 0
--                 one may still come, 1 sent, 2 held, 3 picked up, 4 superseded, 5 dropped, 6 expired, 7 none came.
--                 `attempt`, `at`: which attempt gave it. `taken`: how many bytes of its text the user has. `expires_at`:
--                 while it may be asked for. `picked_by`: the last message that got it. `usr`: the OpenID. `content`: all
--                 of it while it is held, encrypted like its event; `checksum` is of it.
-- kept            what replicas share beside the queue, sealed with the key of that fingerprint: the certificates and
--                 accounts of server.tls.acme.
-- claim           work that one replica does at a time, until then or while it lives.
-- challenge       the proofs that a certificate authority may ask any replica for: the SHA-256 of a key authorization.
-- delivery.state  0 pending, 1 delivered, 2 dead, 3 expired, 4 cancelled.
-- delivery.holder the incarnation of the replica that has it leased; NULL: it is free. Free ones alone are in the index that
--                 leases look in, so what was held and delivered leaves no dead entries there.
-- delivery.failures  failed attempts since the retry schedule last started; `attempts` counts them all.
-- delivery.usr    for targets that keep order: the user's number, 8 bytes of a hash; NULL for the others. While one delivery
--                 of a user is pending, later ones are held: their due time is the end of time until the previous one ended.
-- delivery.turn   their order, by the sequence `turn`: that of the commits, whatever the replicas' clocks say.
-- tally           the running tally: deliveries per target and state; target 0 counts the events at state 0 and the accepted
--                 deliveries at state 1, target -1 the given replies at state 0 and at each state of theirs. Each transaction adds what it changes to `tally_delta`, where nobody waits for a
--                 row; from time to time that is added to `tally`. The tally is the sum of both.
--
-- Times are milliseconds since 1970 UTC, durations microseconds. Texts lack NUL, which PostgreSQL does not store: it is
-- replaced with U+FFFD. There are no foreign keys: an event goes with all its rows in one transaction, and a check per row
-- would slow every push.
--
-- The views `events`, `deliveries`, `attempts` and `replies` are for operators with psql: read them, never write.

CREATE TABLE meta (
  schema        int    NOT NULL,
  oldest_reader int    NOT NULL,
  change        bigint NOT NULL
);

INSERT INTO meta VALUES (3, 1, 0);

CREATE TABLE replica (
  incarnation int         PRIMARY KEY,
  name        text        NOT NULL,
  slot        smallint    NOT NULL UNIQUE,
  release     text        NOT NULL,
  schema      int         NOT NULL,
  alive_at    timestamptz NOT NULL,
  seen        bigint      NOT NULL,
  config      text        NOT NULL,
  keys        bytea[]     NOT NULL,
  admin       text,
  started_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE event (
  id             bigint   PRIMARY KEY,
  content_key    bytea    NOT NULL,
  targets        smallint NOT NULL,
  mode           smallint NOT NULL,
  key            smallint,
  received_at    bigint   NOT NULL,
  asking_until   bigint   NOT NULL DEFAULT 0,
  checksum       bigint,
  reply_checksum bigint,
  account        text     NOT NULL,
  app_id         text     NOT NULL,
  msg_type       text     NOT NULL,
  event          text     NOT NULL,
  event_key      text     NOT NULL,
  from_user      text     NOT NULL,
  traceparent    text,
  reply          bytea,
  query          bytea    NOT NULL,
  body           bytea    NOT NULL,
  clear          bytea
);

CREATE TABLE known (
  content_key bytea  PRIMARY KEY,
  event       bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.05);

CREATE TABLE retired_key (
  event       bigint PRIMARY KEY,
  content_key bytea  NOT NULL
);

CREATE TABLE key (
  no          smallint PRIMARY KEY,
  fingerprint bytea    NOT NULL UNIQUE
);

CREATE TABLE target (
  no     smallint PRIMARY KEY,
  name   text     NOT NULL UNIQUE,
  paused bool     NOT NULL DEFAULT false
);

CREATE TABLE delivery (
  event    bigint   NOT NULL,
  target   smallint NOT NULL,
  state    smallint NOT NULL,
  holder   int,
  attempts int      NOT NULL,
  failures int      NOT NULL,
  due      bigint   NOT NULL,
  ended_at bigint,
  usr      bigint,
  turn     bigint,
  PRIMARY KEY (event, target)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.05);

CREATE INDEX delivery_free ON delivery (target, due, event) WHERE state = 0 AND holder IS NULL;
CREATE INDEX delivery_held ON delivery (holder, event) WHERE state = 0 AND holder IS NOT NULL;
CREATE INDEX delivery_user ON delivery (target, usr, turn) WHERE state = 0 AND usr IS NOT NULL;
CREATE INDEX delivery_dead ON delivery (target, event) WHERE state = 2;

CREATE TABLE attempt (
  event       bigint   NOT NULL,
  target      smallint NOT NULL,
  number      int      NOT NULL,
  at          bigint   NOT NULL,
  duration_us bigint   NOT NULL,
  status      smallint,
  error       text,
  answer      bytea,
  PRIMARY KEY (event, target, number)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.05);

CREATE TABLE held_reply (
  event      bigint   NOT NULL,
  no         int      NOT NULL,
  target     smallint NOT NULL,
  state      smallint NOT NULL,
  attempt    int,
  at         bigint,
  taken      bigint   NOT NULL DEFAULT 0,
  expires_at bigint,
  picked_by  bigint,
  account    text     NOT NULL,
  usr        text     NOT NULL,
  checksum   bigint,
  content    bytea,
  PRIMARY KEY (event, no)
);

CREATE INDEX held_reply_user ON held_reply (account, usr) WHERE expires_at IS NOT NULL;
CREATE INDEX held_reply_picked ON held_reply (picked_by) WHERE picked_by IS NOT NULL;
CREATE INDEX held_reply_expiry ON held_reply (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE tally (
  target smallint NOT NULL,
  state  smallint NOT NULL,
  count  bigint   NOT NULL,
  PRIMARY KEY (target, state)
);

CREATE TABLE tally_delta (
  target smallint NOT NULL,
  state  smallint NOT NULL,
  count  bigint   NOT NULL
);

CREATE TABLE kept (
  name        text  PRIMARY KEY,
  fingerprint bytea NOT NULL,
  value       bytea NOT NULL
);

CREATE TABLE claim (
  name        text        PRIMARY KEY,
  incarnation int         NOT NULL,
  until       timestamptz NOT NULL
);

CREATE TABLE challenge (
  domain text        PRIMARY KEY,
  digest bytea       NOT NULL,
  until  timestamptz NOT NULL
);

CREATE SEQUENCE turn;
CREATE SEQUENCE incarnation AS int CYCLE;

CREATE VIEW events AS
SELECT 'evt_' || lpad(to_hex(id), 16, '0') AS id,
       to_timestamp(received_at / 1000.0) AS received_at,
       account, msg_type, event, event_key, from_user, targets,
       CASE mode WHEN 0 THEN 'plaintext' WHEN 1 THEN 'compatible' WHEN 2 THEN 'secure' END AS mode,
       CASE WHEN key IS NULL THEN encode(coalesce(clear, body), 'escape') ELSE 'sealed' END AS text,
       CASE WHEN key IS NULL OR reply IS NULL THEN encode(reply, 'escape') ELSE 'sealed' END AS reply
  FROM event;

CREATE VIEW deliveries AS
SELECT 'evt_' || lpad(to_hex(d.event), 16, '0') AS event, t.name AS target,
       CASE d.state WHEN 0 THEN 'pending' WHEN 1 THEN 'delivered' WHEN 2 THEN 'dead' WHEN 3 THEN 'expired'
                    WHEN 4 THEN 'cancelled' END AS state,
       d.attempts, d.failures, r.name AS replica,
       CASE d.due WHEN 9223372036854775807 THEN 'infinity' ELSE to_timestamp(d.due / 1000.0) END AS due,
       to_timestamp(d.ended_at / 1000.0) AS ended_at
  FROM delivery d LEFT JOIN target t ON t.no = d.target LEFT JOIN replica r ON r.incarnation = d.holder;

CREATE VIEW attempts AS
SELECT 'evt_' || lpad(to_hex(a.event), 16, '0') AS event, t.name AS target, a.number,
       to_timestamp(a.at / 1000.0) AS at, a.duration_us / 1000.0 AS duration_ms, a.status, a.error,
       CASE WHEN e.key IS NULL OR a.answer IS NULL THEN encode(a.answer, 'escape') ELSE 'sealed' END AS answer
  FROM attempt a LEFT JOIN target t ON t.no = a.target LEFT JOIN event e ON e.id = a.event;

CREATE VIEW replies AS
SELECT 'evt_' || lpad(to_hex(r.event), 16, '0') AS event, r.no, t.name AS target, r.attempt,
       CASE r.state WHEN 0 THEN 'awaited' WHEN 1 THEN 'sent' WHEN 2 THEN 'held' WHEN 3 THEN 'picked_up'
                    WHEN 4 THEN 'superseded' WHEN 5 THEN 'dropped' WHEN 6 THEN 'expired' WHEN 7 THEN 'none' END AS state,
       to_timestamp(r.at / 1000.0) AS at, to_timestamp(r.expires_at / 1000.0) AS expires_at,
       'evt_' || lpad(to_hex(r.picked_by), 16, '0') AS picked_by, r.taken, r.account, r.usr,
       CASE WHEN e.key IS NULL OR r.content IS NULL THEN encode(r.content, 'escape') ELSE 'sealed' END AS content
  FROM held_reply r LEFT JOIN target t ON t.no = r.target LEFT JOIN event e ON e.id = r.event;
