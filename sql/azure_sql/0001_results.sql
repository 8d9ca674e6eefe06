-- Where results live in Azure SQL Database. Join the views (image_prediction, image_probability,
-- image_failure) and read image and run; the tables below them hold the same once, under whole numbers.
-- `vehclass store init` runs this file in one transaction, or a database administrator does, in a query tool or
-- with `sqlcmd -b -I`. It records itself in schema_migration, by which vehclass knows its tables.
--
-- Text compares by its code points (BIN2), so that Clean and clean are two labels and a name is found as
-- it is spelled, whatever the database's own collation. Names have no length limit, since a folder's may
-- be longer than a blob's 1,024 characters; what is indexed stays below 900 bytes. Times are UTC.

SET QUOTED_IDENTIFIER ON; -- sqlcmd leaves it off, and an index with a WHERE needs it
GO

IF OBJECT_ID(N'dbo.schema_migration') IS NULL
  CREATE TABLE dbo.schema_migration (
    version    INT           NOT NULL CONSTRAINT schema_migration_once PRIMARY KEY,
    name       NVARCHAR(200) NOT NULL,
    applied_at DATETIME2(3)  NOT NULL
  );
GO

-- One row per photo, at the content that was last worked on.
CREATE TABLE dbo.[image] (
  image_seq     BIGINT IDENTITY(1, 1) NOT NULL,
  image_id      CHAR(32)      COLLATE Latin1_General_100_BIN2 NOT NULL, -- 128-bit hash of source and name
  source        NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL, -- canonical URL of the folder or container
  name          NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL, -- path below the source
  etag          NVARCHAR(256) COLLATE Latin1_General_100_BIN2 NOT NULL, -- which content this is
  size          BIGINT        NOT NULL,                                 -- bytes
  modified_at   DATETIME2(3)  NOT NULL,
  width         INT           NULL,                                     -- pixels, as a person sees it; NULL until it is decoded
  height        INT           NULL,
  format        NVARCHAR(16)  COLLATE Latin1_General_100_BIN2 NULL,     -- by the bytes, not by the name
  sha256        CHAR(64)      COLLATE Latin1_General_100_BIN2 NULL,     -- of the content
  first_seen_at DATETIME2(3)  NOT NULL,
  CONSTRAINT image_key PRIMARY KEY CLUSTERED (image_seq),
  CONSTRAINT image_once UNIQUE NONCLUSTERED (image_id)
);

CREATE TABLE dbo.model (
  model_seq     BIGINT IDENTITY(1, 1) NOT NULL,
  version       NVARCHAR(64)  COLLATE Latin1_General_100_BIN2 NOT NULL, -- digest of the model's content
  name          NVARCHAR(200) COLLATE Latin1_General_100_BIN2 NOT NULL,
  first_used_at DATETIME2(3)  NOT NULL,
  CONSTRAINT model_key PRIMARY KEY CLUSTERED (model_seq),
  CONSTRAINT model_once UNIQUE NONCLUSTERED (version)
);

CREATE TABLE dbo.task (
  task_seq    BIGINT IDENTITY(1, 1) NOT NULL,
  model_seq   BIGINT        NOT NULL,
  position    INT           NOT NULL,
  name        NVARCHAR(200) COLLATE Latin1_General_100_BIN2 NOT NULL,
  temperature FLOAT(53)     NOT NULL,
  threshold   FLOAT(53)     NOT NULL, -- a probability below it asks for a person's eye
  CONSTRAINT task_key PRIMARY KEY CLUSTERED (task_seq),
  CONSTRAINT task_once UNIQUE NONCLUSTERED (model_seq, position),
  CONSTRAINT task_of_model FOREIGN KEY (model_seq) REFERENCES dbo.model (model_seq)
);

CREATE TABLE dbo.label (
  label_seq BIGINT IDENTITY(1, 1) NOT NULL,
  task_seq  BIGINT        NOT NULL,
  position  INT           NOT NULL,
  label     NVARCHAR(400) COLLATE Latin1_General_100_BIN2 NOT NULL,
  CONSTRAINT label_key PRIMARY KEY CLUSTERED (label_seq),
  CONSTRAINT label_once UNIQUE NONCLUSTERED (task_seq, position),
  CONSTRAINT label_of_task FOREIGN KEY (task_seq) REFERENCES dbo.task (task_seq)
);

CREATE INDEX label_by_name ON dbo.label (label);

-- One row per photo and model: what became of it. This is what a run asks to find what is new.
CREATE TABLE dbo.outcome (
  model_seq   BIGINT        NOT NULL,
  image_seq   BIGINT        NOT NULL,
  etag        NVARCHAR(256) COLLATE Latin1_General_100_BIN2 NOT NULL,
  status      VARCHAR(16)   COLLATE Latin1_General_100_BIN2 NOT NULL,
  stage       VARCHAR(16)   COLLATE Latin1_General_100_BIN2 NULL,
  code        NVARCHAR(64)  COLLATE Latin1_General_100_BIN2 NULL,
  message     NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NULL,
  attempts    INT           NOT NULL,
  run_id      NVARCHAR(64)  COLLATE Latin1_General_100_BIN2 NOT NULL,
  finished_at DATETIME2(3)  NOT NULL,
  CONSTRAINT outcome_key PRIMARY KEY CLUSTERED (model_seq, image_seq),
  CONSTRAINT outcome_status CHECK (status IN ('classified', 'failed', 'quarantined')),
  CONSTRAINT outcome_stage CHECK (stage IN ('read', 'decode', 'classify')),
  CONSTRAINT outcome_of_model FOREIGN KEY (model_seq) REFERENCES dbo.model (model_seq),
  CONSTRAINT outcome_of_image FOREIGN KEY (image_seq) REFERENCES dbo.[image] (image_seq)
);

CREATE INDEX outcome_by_run ON dbo.outcome (run_id, status);

CREATE INDEX outcome_not_classified ON dbo.outcome (image_seq, model_seq) WHERE status <> 'classified';

-- Rows lie by task and by label, so that each batch appends to a few places and a question for one label
-- reads one stretch of the table; no further index is needed.
CREATE TABLE dbo.prediction (
  task_seq     BIGINT    NOT NULL,
  image_seq    BIGINT    NOT NULL,
  label_seq    BIGINT    NOT NULL,
  probability  FLOAT(53) NOT NULL,
  needs_review BIT       NOT NULL,
  CONSTRAINT prediction_key PRIMARY KEY CLUSTERED (task_seq, image_seq),
  CONSTRAINT prediction_probability CHECK (probability BETWEEN 0 AND 1),
  CONSTRAINT prediction_of_label FOREIGN KEY (label_seq) REFERENCES dbo.label (label_seq)
);

CREATE TABLE dbo.probability (
  label_seq   BIGINT    NOT NULL,
  image_seq   BIGINT    NOT NULL,
  probability FLOAT(53) NOT NULL,
  CONSTRAINT probability_key PRIMARY KEY CLUSTERED (label_seq, image_seq),
  CONSTRAINT probability_probability CHECK (probability BETWEEN 0 AND 1)
);

CREATE TABLE dbo.run (
  run_seq      BIGINT IDENTITY(1, 1) NOT NULL,
  run_id       NVARCHAR(64)  COLLATE Latin1_General_100_BIN2 NOT NULL,
  command      NVARCHAR(64)  COLLATE Latin1_General_100_BIN2 NOT NULL,
  source       NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL,
  model        NVARCHAR(300) COLLATE Latin1_General_100_BIN2 NOT NULL, -- name@version
  settings     NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL, -- JSON, without secrets
  host         NVARCHAR(256) COLLATE Latin1_General_100_BIN2 NOT NULL,
  started_at   DATETIME2(3)  NOT NULL,
  heartbeat_at DATETIME2(3)  NOT NULL,
  finished_at  DATETIME2(3)  NULL,
  status       VARCHAR(16)   COLLATE Latin1_General_100_BIN2 NOT NULL,
  exit_code    INT           NULL,
  message      NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NULL,     -- why it ended, where there is something to say
  listed       BIGINT        NULL,                                     -- names in the container that were looked at
  new          BIGINT        NULL,                                     -- of these, new to the model
  classified   BIGINT        NULL,                                     -- counted in this store when the run ended
  failed       BIGINT        NULL,                                     -- quarantined ones included
  quarantined  BIGINT        NULL,
  needs_review BIGINT        NULL,
  CONSTRAINT run_key PRIMARY KEY CLUSTERED (run_seq),
  CONSTRAINT run_once UNIQUE NONCLUSTERED (run_id),
  CONSTRAINT run_status CHECK (status IN ('running', 'done', 'failed', 'interrupted'))
);

CREATE INDEX run_by_start ON dbo.run (started_at);

-- Lets one run at a time work on a source with a model. The fence grows with each holder: a run that was
-- paused and wakes up late finds another number here and writes nothing. A source's URL may be longer
-- than an index key, so the key is its hash.
CREATE TABLE dbo.lease (
  lease_id    BINARY(32)    NOT NULL, -- SHA-256 of lease_key
  lease_key   NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL,
  fence       BIGINT        NOT NULL,
  run_id      NVARCHAR(64)  COLLATE Latin1_General_100_BIN2 NULL, -- NULL when free
  holder      NVARCHAR(512) COLLATE Latin1_General_100_BIN2 NOT NULL, -- host and process
  acquired_at DATETIME2(3)  NOT NULL,
  expires_at  DATETIME2(3)  NOT NULL,
  CONSTRAINT lease_once PRIMARY KEY CLUSTERED (lease_id)
);
GO

CREATE VIEW dbo.image_prediction AS
SELECT i.image_id, i.source, i.name, m.name + N'@' + m.version AS model, t.name AS task,
       l.label, p.probability, p.needs_review, o.etag, o.run_id, o.finished_at AS classified_at
FROM dbo.prediction AS p
INNER JOIN dbo.task AS t ON t.task_seq = p.task_seq
INNER JOIN dbo.model AS m ON m.model_seq = t.model_seq
INNER JOIN dbo.label AS l ON l.label_seq = p.label_seq
INNER JOIN dbo.[image] AS i ON i.image_seq = p.image_seq
INNER JOIN dbo.outcome AS o ON o.model_seq = t.model_seq AND o.image_seq = p.image_seq;
GO

CREATE VIEW dbo.image_probability AS
SELECT i.image_id, i.source, i.name, m.name + N'@' + m.version AS model, t.name AS task,
       l.label, p.probability
FROM dbo.label AS l
INNER JOIN dbo.probability AS p ON p.label_seq = l.label_seq
INNER JOIN dbo.task AS t ON t.task_seq = l.task_seq
INNER JOIN dbo.model AS m ON m.model_seq = t.model_seq
INNER JOIN dbo.[image] AS i ON i.image_seq = p.image_seq;
GO

CREATE VIEW dbo.image_failure AS
SELECT i.image_id, i.source, i.name, m.name + N'@' + m.version AS model, o.stage, o.code, o.message,
       o.attempts, CASE WHEN o.status = 'quarantined' THEN 1 ELSE 0 END AS quarantined,
       o.etag, o.run_id, o.finished_at AS failed_at
FROM dbo.outcome AS o
INNER JOIN dbo.model AS m ON m.model_seq = o.model_seq
INNER JOIN dbo.[image] AS i ON i.image_seq = o.image_seq
WHERE o.status <> 'classified';
GO

INSERT INTO dbo.schema_migration (version, name, applied_at)
SELECT 1, N'0001_results.sql', SYSUTCDATETIME()
WHERE NOT EXISTS (SELECT 1 FROM dbo.schema_migration WHERE version = 1);
GO
