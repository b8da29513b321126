-- Version 6: replies that come late wait for the user's next message (queue/held.rs).

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
