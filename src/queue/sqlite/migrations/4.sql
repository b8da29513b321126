-- Version 4: content keys are kept in a table of their own, written in sorted runs (dedup_index.rs), no longer in an
-- index that each event writes a page of.

CREATE TABLE known (
  content_key BLOB    PRIMARY KEY,
  event       INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE known_until (
  event INTEGER NOT NULL
);

INSERT INTO known SELECT content_key, id FROM event ORDER BY content_key;
INSERT INTO known_until SELECT coalesce(max(id), 0) FROM event;

-- A table's own UNIQUE cannot be dropped but by copying the table, which is most of the store. Its index is like any
-- other but in name: it gets one, and then goes.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, 'content_key BLOB    NOT NULL UNIQUE', 'content_key BLOB    NOT NULL')
 WHERE name = 'event';
UPDATE sqlite_schema SET name = 'event_content_key', sql = 'CREATE UNIQUE INDEX event_content_key ON event (content_key)'
 WHERE name = 'sqlite_autoindex_event_1';
PRAGMA writable_schema = RESET;

DROP INDEX event_content_key;
