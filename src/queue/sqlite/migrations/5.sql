-- Version 5: the content key of a deleted event is kept until a copy of its push is no longer accepted.

CREATE TABLE retired_key (
  event       INTEGER PRIMARY KEY,
  content_key BLOB    NOT NULL
);
