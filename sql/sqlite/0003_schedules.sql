-- What `vehclass schedule` leaves of each job: that it is alive, what comes next, and how the last time ended.

CREATE TABLE schedule (
  name         TEXT PRIMARY KEY,
  times        TEXT NOT NULL,  -- when it is due, as a person would say it
  command      TEXT NOT NULL,  -- what it runs, without secrets
  holder       TEXT NOT NULL,  -- host and process of the scheduler that was heard last
  heartbeat_at TEXT NOT NULL,  -- when that was
  next_due_at  TEXT,
  ended_due_at TEXT,           -- the last time it was due that came to an end
  last         TEXT            -- JSON: how that ended
) STRICT, WITHOUT ROWID;

-- Where the time of a run went.
CREATE TABLE run_profile (
  run_id  TEXT PRIMARY KEY,
  profile TEXT NOT NULL    -- JSON: seconds by stage, how busy the cores were
) STRICT, WITHOUT ROWID;
