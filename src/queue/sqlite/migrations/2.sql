-- Version 2: an operator can pause a target.

ALTER TABLE target ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
