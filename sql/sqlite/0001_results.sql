-- Where results live. Look at the views (image_prediction, image_probability, image_failure) and at
-- image and run; the tables below them hold the same once, under small whole numbers.

-- One row per photo, at the content that was last worked on.
CREATE TABLE image (
  image_seq     INTEGER PRIMARY KEY,
  image_id      TEXT    NOT NULL UNIQUE,  -- 128-bit hash of source and name
  source        TEXT    NOT NULL,         -- canonical URL of the folder or container
  name          TEXT    NOT NULL,         -- path below the source
  etag          TEXT    NOT NULL,         -- which content this is
  size          INTEGER NOT NULL,         -- bytes
  modified_at   TEXT    NOT NULL,         -- UTC, ISO 8601
  width         INTEGER,                  -- pixels, as a person sees it; NULL until it is decoded
  height        INTEGER,
  format        TEXT,                     -- by the bytes, not by the name
  sha256        TEXT,                     -- of the content
  first_seen_at TEXT    NOT NULL
) STRICT;

CREATE TABLE model (
  model_seq     INTEGER PRIMARY KEY,
  version       TEXT    NOT NULL UNIQUE,  -- digest of the model's content
  name          TEXT    NOT NULL,
  first_used_at TEXT    NOT NULL
) STRICT;

CREATE TABLE task (
  task_seq    INTEGER PRIMARY KEY,
  model_seq   INTEGER NOT NULL REFERENCES model,
  position    INTEGER NOT NULL,
  name        TEXT    NOT NULL,
  temperature REAL    NOT NULL,
  threshold   REAL    NOT NULL,           -- a probability below it asks for a person's eye
  UNIQUE (model_seq, position)
) STRICT;

CREATE TABLE label (
  label_seq INTEGER PRIMARY KEY,
  task_seq  INTEGER NOT NULL REFERENCES task,
  position  INTEGER NOT NULL,
  label     TEXT    NOT NULL,
  UNIQUE (task_seq, position)
) STRICT;
CREATE INDEX label_by_name ON label (label);

-- One row per photo and model: what became of it. This is what a run asks to find what is new.
CREATE TABLE outcome (
  model_seq   INTEGER NOT NULL REFERENCES model,
  image_seq   INTEGER NOT NULL REFERENCES image,
  etag        TEXT    NOT NULL,
  status      TEXT    NOT NULL CHECK (status IN ('classified', 'failed', 'quarantined')),
  stage       TEXT    CHECK (stage IN ('read', 'decode', 'classify')),
  code        TEXT,
  message     TEXT,
  attempts    INTEGER NOT NULL,
  run_id      TEXT    NOT NULL,
  finished_at TEXT    NOT NULL,
  PRIMARY KEY (model_seq, image_seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX outcome_by_run ON outcome (run_id, status);
CREATE INDEX outcome_not_classified ON outcome (status, model_seq) WHERE status <> 'classified';

-- Rows lie by task and by label, so that each batch appends to a few places of the file and
-- `WHERE label = ... AND probability > ...` reads one stretch of it; no further index is needed.
CREATE TABLE prediction (
  task_seq     INTEGER NOT NULL REFERENCES task,
  image_seq    INTEGER NOT NULL REFERENCES image,
  label_seq    INTEGER NOT NULL REFERENCES label,
  probability  REAL    NOT NULL CHECK (probability BETWEEN 0 AND 1),
  needs_review INTEGER NOT NULL CHECK (needs_review IN (0, 1)),
  PRIMARY KEY (task_seq, image_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE probability (
  label_seq   INTEGER NOT NULL REFERENCES label,
  image_seq   INTEGER NOT NULL REFERENCES image,
  probability REAL    NOT NULL CHECK (probability BETWEEN 0 AND 1),
  PRIMARY KEY (label_seq, image_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE run (
  run_id       TEXT PRIMARY KEY,
  command      TEXT NOT NULL,
  source       TEXT NOT NULL,
  model        TEXT NOT NULL,             -- name@version
  settings     TEXT NOT NULL,             -- JSON, without secrets
  host         TEXT NOT NULL,
  started_at   TEXT NOT NULL,
  heartbeat_at TEXT NOT NULL,
  finished_at  TEXT,
  status       TEXT NOT NULL CHECK (status IN ('running', 'done', 'failed', 'interrupted')),
  exit_code    INTEGER,
  message      TEXT,                      -- why it ended, where there is something to say
  listed       INTEGER,                   -- names in the container that were looked at
  new          INTEGER,                   -- of these, new to the model
  classified   INTEGER,                   -- counted in this store when the run ended
  failed       INTEGER,                   -- quarantined ones included
  quarantined  INTEGER,
  needs_review INTEGER
) STRICT;
CREATE INDEX run_by_start ON run (started_at);

-- Lets one run at a time work on a source with a model. The fence grows with each holder: a run that
-- was paused and wakes up late finds another number here and writes nothing.
CREATE TABLE lease (
  lease_key   TEXT    PRIMARY KEY,
  fence       INTEGER NOT NULL,
  run_id      TEXT,                       -- NULL when free
  holder      TEXT    NOT NULL,           -- host and process
  acquired_at TEXT    NOT NULL,
  expires_at  TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE VIEW image_prediction AS
SELECT i.image_id, i.source, i.name, m.name || '@' || m.version AS model, t.name AS task,
       l.label, p.probability, p.needs_review, o.etag, o.run_id, o.finished_at AS classified_at
FROM prediction AS p
JOIN task AS t USING (task_seq)
JOIN model AS m USING (model_seq)
JOIN label AS l USING (label_seq)
JOIN image AS i ON i.image_seq = p.image_seq
JOIN outcome AS o ON o.model_seq = t.model_seq AND o.image_seq = p.image_seq;

CREATE VIEW image_probability AS
SELECT i.image_id, i.source, i.name, m.name || '@' || m.version AS model, t.name AS task,
       l.label, p.probability
FROM label AS l
JOIN probability AS p USING (label_seq)
JOIN task AS t USING (task_seq)
JOIN model AS m USING (model_seq)
JOIN image AS i ON i.image_seq = p.image_seq;

CREATE VIEW image_failure AS
SELECT i.image_id, i.source, i.name, m.name || '@' || m.version AS model, o.stage, o.code, o.message,
       o.attempts, o.status = 'quarantined' AS quarantined, o.etag, o.run_id, o.finished_at AS failed_at
FROM outcome AS o
JOIN model AS m USING (model_seq)
JOIN image AS i USING (image_seq)
WHERE o.status <> 'classified';
