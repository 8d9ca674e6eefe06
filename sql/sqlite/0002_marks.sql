-- What a run that accounted for every name leaves for the next, so that it need not ask about each again.

CREATE TABLE mark (
  mark_key TEXT PRIMARY KEY, -- 128-bit hash of source, model version, prefix and patterns
  mark     TEXT NOT NULL,    -- JSON: when that run began, fingerprints of stretches of names, which to try again
  left_at  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Rows that somebody deletes are to come back: every name is asked about again.
CREATE TRIGGER outcome_deleted AFTER DELETE ON outcome BEGIN
  DELETE FROM mark;
END;
