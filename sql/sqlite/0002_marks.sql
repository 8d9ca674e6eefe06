-- What a run that accounted for every name leaves for the next, so that it need not ask about each again.

CREATE TABLE mark (
  mark_key   TEXT PRIMARY KEY, -- 128-bit hash of source, model version, prefixes and patterns
  mark_group TEXT NOT NULL,    -- 128-bit hash of source and model version
  mark       TEXT NOT NULL,    -- JSON: when that run began, fingerprints of stretches of names, which to try again; '' when no longer good
  run_id     TEXT NOT NULL,    -- the last run that made room for its mark here
  left_at    TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX mark_by_group ON mark (mark_group);

-- Rows that somebody deletes are to come back: every name is asked about again, and a run that is at it leaves no mark.
CREATE TRIGGER outcome_deleted AFTER DELETE ON outcome BEGIN
  DELETE FROM mark;
END;
