-- Version 2: a target can be paused by hand.

ALTER TABLE target ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
