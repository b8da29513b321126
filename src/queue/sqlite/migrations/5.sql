-- Version 5: the content key of a deleted event is kept until a copy of its push is no longer accepted. What is read from
-- the disk is compared with a checksum before it is delivered (checksum.rs); events that are stored already have none:
-- their texts are compared with their content keys.

CREATE TABLE retired_key (
  event       INTEGER PRIMARY KEY,
  content_key BLOB    NOT NULL
);

ALTER TABLE event ADD COLUMN checksum INTEGER;
ALTER TABLE event ADD COLUMN reply_checksum INTEGER;
