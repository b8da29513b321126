-- Version 3: payloads can be encrypted. What is stored already stays in the clear.

ALTER TABLE event ADD COLUMN key INTEGER;

CREATE TABLE key (
  no          INTEGER PRIMARY KEY,
  fingerprint BLOB    NOT NULL UNIQUE
);

DROP VIEW events;
DROP VIEW attempts;

CREATE VIEW events AS
SELECT printf('evt_%016x', id) AS id,
       strftime('%Y-%m-%dT%H:%M:%S', received_at / 1000, 'unixepoch') || printf('.%03dZ', received_at % 1000)
         AS received_at,
       account, msg_type, event, event_key, from_user, targets,
       CASE mode WHEN 0 THEN 'plaintext' WHEN 1 THEN 'compatible' WHEN 2 THEN 'secure' END AS mode,
       CASE WHEN key IS NULL THEN CAST(coalesce(clear, body) AS TEXT) ELSE 'sealed' END AS text,
       CASE WHEN key IS NULL OR reply IS NULL THEN reply ELSE 'sealed' END AS reply
  FROM event;

CREATE VIEW attempts AS
SELECT printf('evt_%016x', a.event) AS event, t.name AS target, a.number,
       strftime('%Y-%m-%dT%H:%M:%S', a.at / 1000, 'unixepoch') || printf('.%03dZ', a.at % 1000) AS at,
       a.duration_us / 1000.0 AS duration_ms, a.status, a.error,
       CASE WHEN e.key IS NULL OR a.answer IS NULL THEN CAST(a.answer AS TEXT) ELSE 'sealed' END AS answer
  FROM attempt a LEFT JOIN target t ON t.no = a.target LEFT JOIN event e ON e.id = a.event;
