-- What vehclass runs on Azure SQL, each under its name: a statement, or several that go together. The
-- parameters are declared with these types before the text; a batch travels as JSON parameters, so that the
-- number of round trips does not grow with it, and without nulls: '' and -1 stand for them. Text from JSON is given the tables' collation where it is
-- compared. Rows are locked in the order of their keys (LOOP JOIN, FORCE ORDER from a table that has them as its primary
-- key), so that two writers wait for each other instead of deadlocking.

-- name: schema_version
-- Found out before anything else; -1: the tables are there, but nothing says that they are ours.
IF OBJECT_ID(N'dbo.schema_migration') IS NULL
  SELECT CASE WHEN OBJECT_ID(N'dbo.outcome') IS NULL AND OBJECT_ID(N'dbo.[image]') IS NULL THEN 0 ELSE -1 END;
ELSE
  SELECT COALESCE(MAX(version), 0) FROM dbo.schema_migration;

-- name: missing_rights
-- parameters: @wanted NVARCHAR(MAX)
-- wanted: [[table, right], ...]; answers those that this user has not.
SELECT w.name, w.permission
FROM OPENJSON(@wanted) WITH (name NVARCHAR(128) '$[0]', permission NVARCHAR(60) '$[1]') AS w
WHERE COALESCE(HAS_PERMS_BY_NAME(w.name, N'OBJECT', w.permission), 0) = 0
ORDER BY w.name, w.permission;

-- name: begin_transaction
IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION;
SET XACT_ABORT ON;
BEGIN TRANSACTION;

-- name: commit_transaction
COMMIT TRANSACTION;

-- name: roll_back
IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION;

-- name: lock_migration
-- Two that make the tables at once: the second waits, and finds them made.
DECLARE @got INT;
EXECUTE @got = sp_getapplock
  @Resource = N'vehclass.migration', @LockMode = N'Exclusive', @LockOwner = N'Transaction', @LockTimeout = 20000;
SELECT @got AS got;

-- name: add_model
-- parameters: @version NVARCHAR(64), @name NVARCHAR(200), @now CHAR(24)
INSERT INTO dbo.model (version, name, first_used_at)
SELECT @version, @name, CAST(LEFT(@now, 23) AS DATETIME2(3))
WHERE NOT EXISTS (SELECT 1 FROM dbo.model AS m WITH (UPDLOCK, HOLDLOCK) WHERE m.version = @version);

-- name: model_seq
-- parameters: @version NVARCHAR(64)
SELECT model_seq FROM dbo.model WHERE version = @version;

-- name: add_tasks
-- parameters: @tasks NVARCHAR(MAX), @model_seq BIGINT
-- tasks: [[position, name, temperature, threshold], ...]
INSERT INTO dbo.task (model_seq, position, name, temperature, threshold)
SELECT @model_seq, j.position, j.name, j.temperature, j.threshold
FROM OPENJSON(@tasks) WITH (
  position INT '$[0]', name NVARCHAR(200) '$[1]', temperature FLOAT '$[2]', threshold FLOAT '$[3]') AS j
WHERE NOT EXISTS (
  SELECT 1 FROM dbo.task AS t WITH (UPDLOCK, HOLDLOCK) WHERE t.model_seq = @model_seq AND t.position = j.position)
ORDER BY j.position;

-- name: add_labels
-- parameters: @labels NVARCHAR(MAX), @model_seq BIGINT
-- labels: [[task position, position, label], ...]
INSERT INTO dbo.label (task_seq, position, label)
SELECT t.task_seq, j.position, j.label
FROM OPENJSON(@labels) WITH (task INT '$[0]', position INT '$[1]', label NVARCHAR(400) '$[2]') AS j
INNER JOIN dbo.task AS t ON t.model_seq = @model_seq AND t.position = j.task
WHERE NOT EXISTS (
  SELECT 1 FROM dbo.label AS l WITH (UPDLOCK, HOLDLOCK) WHERE l.task_seq = t.task_seq AND l.position = j.position)
ORDER BY j.task, j.position;

-- name: label_seqs
-- parameters: @model_seq BIGINT
SELECT t.name AS task, l.label, l.label_seq
FROM dbo.label AS l
INNER JOIN dbo.task AS t ON t.task_seq = l.task_seq
WHERE t.model_seq = @model_seq
ORDER BY t.position, l.position;

-- name: unseen
-- parameters: @page NVARCHAR(MAX), @model_seq BIGINT, @retry_failed BIT
-- page: [[position, image_id, etag], ...]; answers the positions of those that are new.
SELECT p.position
FROM OPENJSON(@page) WITH (position INT '$[0]', image_id CHAR(32) '$[1]', etag NVARCHAR(256) '$[2]') AS p
LEFT JOIN dbo.[image] AS i ON i.image_id = p.image_id COLLATE Latin1_General_100_BIN2
LEFT JOIN dbo.outcome AS o ON o.model_seq = @model_seq AND o.image_seq = i.image_seq
WHERE o.image_seq IS NULL
   OR o.etag <> p.etag COLLATE Latin1_General_100_BIN2
   OR o.status = 'failed'
   OR (o.status = 'quarantined' AND @retry_failed = 1)
ORDER BY p.position;

-- name: holds_lease
-- parameters: @lease_key NVARCHAR(MAX), @fence BIGINT, @run_id NVARCHAR(64)
-- Written, so that the row is locked until the transaction ends, on any isolation level: the lease does not
-- pass on between this look and the writing.
UPDATE dbo.lease SET fence = fence
WHERE lease_id = HASHBYTES('SHA2_256', @lease_key) AND fence = @fence AND run_id = @run_id;
SELECT 1 AS held WHERE @@ROWCOUNT = 1;

-- name: save_images
-- parameters: @images NVARCHAR(MAX), @now CHAR(24)
-- images: [[position, image_id, source, name, etag, size, modified_at, width, height, format, sha256], ...];
-- answers each one's position and number.
DECLARE @batch TABLE (
  image_id    CHAR(32)      COLLATE Latin1_General_100_BIN2 NOT NULL PRIMARY KEY,
  position    INT           NOT NULL,
  source      NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL,
  name        NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL,
  etag        NVARCHAR(256) COLLATE Latin1_General_100_BIN2 NOT NULL,
  size        BIGINT        NOT NULL,
  modified_at DATETIME2(3)  NOT NULL,
  width       INT           NULL,
  height      INT           NULL,
  format      NVARCHAR(16)  COLLATE Latin1_General_100_BIN2 NULL,
  sha256      CHAR(64)      COLLATE Latin1_General_100_BIN2 NULL
);
INSERT INTO @batch (image_id, position, source, name, etag, size, modified_at, width, height, format, sha256)
SELECT j.image_id, j.position, j.source, j.name, j.etag, j.size, CAST(LEFT(j.modified_at, 23) AS DATETIME2(3)),
       NULLIF(j.width, -1), NULLIF(j.height, -1), NULLIF(j.format, N''), NULLIF(j.sha256, '')
FROM OPENJSON(@images) WITH (
  position INT '$[0]', image_id CHAR(32) '$[1]', source NVARCHAR(MAX) '$[2]', name NVARCHAR(MAX) '$[3]',
  etag NVARCHAR(256) '$[4]', size BIGINT '$[5]', modified_at CHAR(24) '$[6]', width INT '$[7]', height INT '$[8]',
  format NVARCHAR(16) '$[9]', sha256 CHAR(64) '$[10]') AS j;

-- Of what is there, locked in the order of the keys; the gaps where the others will go are held as well.
DECLARE @known TABLE (
  image_id CHAR(32) COLLATE Latin1_General_100_BIN2 NOT NULL PRIMARY KEY
);
INSERT INTO @known (image_id)
SELECT i.image_id
FROM @batch AS b
INNER JOIN dbo.[image] AS i WITH (UPDLOCK, HOLDLOCK) ON i.image_id = b.image_id
ORDER BY b.image_id
OPTION (LOOP JOIN, FORCE ORDER);

UPDATE i SET
  -- What another model's run has seen of the same content stays, when this one could not read it.
  width = CASE WHEN i.etag = b.etag THEN COALESCE(b.width, i.width) ELSE b.width END,
  height = CASE WHEN i.etag = b.etag THEN COALESCE(b.height, i.height) ELSE b.height END,
  format = CASE WHEN i.etag = b.etag THEN COALESCE(b.format, i.format) ELSE b.format END,
  sha256 = CASE WHEN i.etag = b.etag THEN COALESCE(b.sha256, i.sha256) ELSE b.sha256 END,
  etag = b.etag, size = b.size, modified_at = b.modified_at
FROM @known AS k
INNER JOIN dbo.[image] AS i ON i.image_id = k.image_id
INNER JOIN @batch AS b ON b.image_id = k.image_id
OPTION (LOOP JOIN, FORCE ORDER);

INSERT INTO dbo.[image]
  (image_id, source, name, etag, size, modified_at, width, height, format, sha256, first_seen_at)
SELECT b.image_id, b.source, b.name, b.etag, b.size, b.modified_at, b.width, b.height, b.format, b.sha256,
       CAST(LEFT(@now, 23) AS DATETIME2(3))
FROM @batch AS b
WHERE NOT EXISTS (SELECT 1 FROM @known AS k WHERE k.image_id = b.image_id)
ORDER BY b.position;

SELECT b.position, i.image_seq
FROM @batch AS b
INNER JOIN dbo.[image] AS i ON i.image_id = b.image_id
OPTION (LOOP JOIN, FORCE ORDER);

-- name: save_outcomes
-- parameters: @outcomes NVARCHAR(MAX), @predictions NVARCHAR(MAX), @probabilities NVARCHAR(MAX), @model_seq BIGINT, @max_attempts INT, @run_id NVARCHAR(64), @now CHAR(24)
-- outcomes: [[image_seq, etag, stage, code, message, permanent], ...]; no stage means classified.
-- predictions: [[image_seq, label_seq, probability, needs_review], ...]
-- probabilities: [[image_seq, label_seq, probability], ...]
-- The attempts are the runs that tried: the same batch saved twice by one run is one attempt.
DECLARE @batch TABLE (
  image_seq BIGINT        NOT NULL PRIMARY KEY,
  etag      NVARCHAR(256) COLLATE Latin1_General_100_BIN2 NOT NULL,
  stage     VARCHAR(16)   COLLATE Latin1_General_100_BIN2 NULL,
  code      NVARCHAR(64)  COLLATE Latin1_General_100_BIN2 NULL,
  message   NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NULL,
  permanent BIT           NOT NULL
);
INSERT INTO @batch (image_seq, etag, stage, code, message, permanent)
SELECT j.image_seq, j.etag, NULLIF(j.stage, ''), NULLIF(j.code, N''), NULLIF(j.message, N''), j.permanent
FROM OPENJSON(@outcomes) WITH (
  image_seq BIGINT '$[0]', etag NVARCHAR(256) '$[1]', stage VARCHAR(16) '$[2]', code NVARCHAR(64) '$[3]',
  message NVARCHAR(MAX) '$[4]', permanent BIT '$[5]') AS j;

DECLARE @known TABLE (
  image_seq BIGINT NOT NULL PRIMARY KEY
);
INSERT INTO @known (image_seq)
SELECT o.image_seq
FROM @batch AS b
INNER JOIN dbo.outcome AS o WITH (UPDLOCK, HOLDLOCK) ON o.model_seq = @model_seq AND o.image_seq = b.image_seq
ORDER BY b.image_seq
OPTION (LOOP JOIN, FORCE ORDER);

-- A photo that is answered again, or now fails, keeps no answer of before. Whoever holds the outcome's key
-- may write the rows that belong to it.
IF EXISTS (SELECT 1 FROM @known)
BEGIN
  DELETE p
  FROM dbo.task AS t
  CROSS JOIN @known AS k
  INNER JOIN dbo.prediction AS p ON p.task_seq = t.task_seq AND p.image_seq = k.image_seq
  WHERE t.model_seq = @model_seq
  OPTION (LOOP JOIN, FORCE ORDER);

  DELETE r
  FROM dbo.task AS t
  INNER JOIN dbo.label AS l ON l.task_seq = t.task_seq
  CROSS JOIN @known AS k
  INNER JOIN dbo.probability AS r ON r.label_seq = l.label_seq AND r.image_seq = k.image_seq
  WHERE t.model_seq = @model_seq
  OPTION (LOOP JOIN, FORCE ORDER);

  UPDATE o SET
    attempts = CASE WHEN o.etag <> b.etag OR o.status = 'classified' THEN 1
                    WHEN o.run_id <> @run_id THEN o.attempts + 1
                    ELSE o.attempts END,
    status = CASE WHEN b.stage IS NULL THEN 'classified'
                  WHEN b.permanent = 1 OR @max_attempts <= 1 THEN 'quarantined'
                  WHEN o.etag = b.etag AND o.status <> 'classified'
                       AND o.attempts + CASE WHEN o.run_id <> @run_id THEN 1 ELSE 0 END >= @max_attempts
                    THEN 'quarantined'
                  ELSE 'failed' END,
    etag = b.etag, stage = b.stage, code = b.code, message = b.message, run_id = @run_id,
    finished_at = CAST(LEFT(@now, 23) AS DATETIME2(3))
  FROM @batch AS b
  INNER JOIN dbo.outcome AS o ON o.model_seq = @model_seq AND o.image_seq = b.image_seq
  OPTION (LOOP JOIN, FORCE ORDER);
END;

INSERT INTO dbo.outcome
  (model_seq, image_seq, etag, status, stage, code, message, attempts, run_id, finished_at)
SELECT @model_seq, b.image_seq, b.etag,
       CASE WHEN b.stage IS NULL THEN 'classified'
            WHEN b.permanent = 1 OR @max_attempts <= 1 THEN 'quarantined' ELSE 'failed' END,
       b.stage, b.code, b.message, 1, @run_id, CAST(LEFT(@now, 23) AS DATETIME2(3))
FROM @batch AS b
WHERE NOT EXISTS (SELECT 1 FROM @known AS k WHERE k.image_seq = b.image_seq)
ORDER BY b.image_seq;

INSERT INTO dbo.prediction (task_seq, image_seq, label_seq, probability, needs_review)
SELECT l.task_seq, j.image_seq, j.label_seq, j.probability, j.needs_review
FROM OPENJSON(@predictions) WITH (
  image_seq BIGINT '$[0]', label_seq BIGINT '$[1]', probability FLOAT '$[2]', needs_review BIT '$[3]') AS j
INNER JOIN dbo.label AS l ON l.label_seq = j.label_seq;

INSERT INTO dbo.probability (label_seq, image_seq, probability)
SELECT j.label_seq, j.image_seq, j.probability
FROM OPENJSON(@probabilities) WITH (
  image_seq BIGINT '$[0]', label_seq BIGINT '$[1]', probability FLOAT '$[2]') AS j;

-- name: start_run
-- parameters: @run_id NVARCHAR(64), @command NVARCHAR(64), @source NVARCHAR(MAX), @model NVARCHAR(300), @settings NVARCHAR(MAX), @host NVARCHAR(256), @now CHAR(24)
INSERT INTO dbo.run (run_id, command, source, model, settings, host, started_at, heartbeat_at, status)
SELECT @run_id, @command, @source, @model, @settings, @host, CAST(LEFT(@now, 23) AS DATETIME2(3)),
       CAST(LEFT(@now, 23) AS DATETIME2(3)), 'running'
WHERE NOT EXISTS (SELECT 1 FROM dbo.run AS r WITH (UPDLOCK, HOLDLOCK) WHERE r.run_id = @run_id);

-- name: end_run
-- parameters: @run_id NVARCHAR(64), @status VARCHAR(16), @exit_code INT, @message NVARCHAR(MAX), @listed BIGINT, @new BIGINT, @classified BIGINT, @failed BIGINT, @quarantined BIGINT, @needs_review BIGINT, @now CHAR(24)
UPDATE dbo.run SET finished_at = CAST(LEFT(@now, 23) AS DATETIME2(3)),
  heartbeat_at = CAST(LEFT(@now, 23) AS DATETIME2(3)), status = @status, exit_code = @exit_code,
  message = @message, listed = @listed, new = @new, classified = @classified, failed = @failed,
  quarantined = @quarantined, needs_review = @needs_review
WHERE run_id = @run_id;

-- name: save_profile
-- parameters: @run_id NVARCHAR(64), @profile NVARCHAR(MAX)
UPDATE dbo.run_profile WITH (UPDLOCK, HOLDLOCK) SET profile = @profile WHERE run_id = @run_id;
IF @@ROWCOUNT = 0
  INSERT INTO dbo.run_profile (run_id, profile) VALUES (@run_id, @profile);

-- name: run_profile
-- parameters: @run_id NVARCHAR(64)
SELECT profile FROM dbo.run_profile WHERE run_id = @run_id;

-- name: end_dead_runs
-- parameters: @run_id NVARCHAR(64)
-- A run whose lease has passed to another did not end by itself: it was killed.
UPDATE dbo.run SET status = 'interrupted', finished_at = heartbeat_at,
  message = N'killed; its work was taken up by a later run'
WHERE status = 'running' AND run_id = @run_id;

-- name: beat
-- parameters: @run_id NVARCHAR(64), @now CHAR(24)
UPDATE dbo.run SET heartbeat_at = CAST(LEFT(@now, 23) AS DATETIME2(3)) WHERE run_id = @run_id;

-- name: read_lease
-- parameters: @lease_key NVARCHAR(MAX)
-- Until the transaction ends, nobody else reads this lease: two that want it come one after the other,
-- even where there is no row yet that they could wait for. 51222 is ours: somebody kept it for 20 s.
DECLARE @resource NVARCHAR(255) = N'vehclass.' + CONVERT(NVARCHAR(64), HASHBYTES('SHA2_256', @lease_key), 2);
DECLARE @got INT;
EXECUTE @got = sp_getapplock
  @Resource = @resource, @LockMode = N'Exclusive', @LockOwner = N'Transaction', @LockTimeout = 20000;
IF @got < 0 THROW 51222, N'The lease is being taken by somebody else.', 1;
SELECT run_id, holder, fence, CASE WHEN expires_at > SYSUTCDATETIME() THEN 1 ELSE 0 END AS live
FROM dbo.lease WHERE lease_id = HASHBYTES('SHA2_256', @lease_key);

-- name: take_lease
-- parameters: @lease_key NVARCHAR(MAX), @run_id NVARCHAR(64), @holder NVARCHAR(512), @seconds INT
-- The store's clock decides, so that two machines agree.
DECLARE @moment DATETIME2(3) = SYSUTCDATETIME();
UPDATE dbo.lease WITH (UPDLOCK, HOLDLOCK) SET fence = fence + 1, run_id = @run_id, holder = @holder,
  acquired_at = @moment, expires_at = DATEADD(SECOND, @seconds, @moment)
WHERE lease_id = HASHBYTES('SHA2_256', @lease_key);
IF @@ROWCOUNT = 0
  INSERT INTO dbo.lease (lease_id, lease_key, fence, run_id, holder, acquired_at, expires_at)
  VALUES (HASHBYTES('SHA2_256', @lease_key), @lease_key, 1, @run_id, @holder, @moment,
          DATEADD(SECOND, @seconds, @moment));

-- name: renew_lease
-- parameters: @lease_key NVARCHAR(MAX), @fence BIGINT, @run_id NVARCHAR(64), @seconds INT
UPDATE dbo.lease SET expires_at = DATEADD(SECOND, @seconds, SYSUTCDATETIME())
WHERE lease_id = HASHBYTES('SHA2_256', @lease_key) AND fence = @fence AND run_id = @run_id;
SELECT @@ROWCOUNT AS changed;

-- name: free_lease
-- parameters: @lease_key NVARCHAR(MAX), @fence BIGINT, @run_id NVARCHAR(64)
UPDATE dbo.lease SET run_id = NULL
WHERE lease_id = HASHBYTES('SHA2_256', @lease_key) AND fence = @fence AND run_id = @run_id;

-- name: read_marks
-- parameters: @mark_group CHAR(32)
SELECT mark_key, mark FROM dbo.mark WHERE mark_group = @mark_group;

-- name: open_mark
-- parameters: @mark_key CHAR(32), @mark_group CHAR(32), @run_id NVARCHAR(64), @now CHAR(24)
UPDATE dbo.mark WITH (UPDLOCK, HOLDLOCK) SET run_id = @run_id WHERE mark_key = @mark_key;
IF @@ROWCOUNT = 0
  INSERT INTO dbo.mark (mark_key, mark_group, mark, run_id, left_at) VALUES (@mark_key, @mark_group, N'', @run_id, CAST(LEFT(@now, 23) AS DATETIME2(3)));

-- name: drop_marks
-- parameters: @mark_keys NVARCHAR(MAX)
-- mark_keys: [key, ...]
UPDATE dbo.mark SET mark = N'' WHERE mark_key IN (SELECT k.value FROM OPENJSON(@mark_keys) AS k);

-- name: leave_mark
-- parameters: @mark_key CHAR(32), @mark NVARCHAR(MAX), @run_id NVARCHAR(64), @now CHAR(24)
UPDATE dbo.mark SET mark = @mark, left_at = CAST(LEFT(@now, 23) AS DATETIME2(3)) WHERE mark_key = @mark_key AND run_id = @run_id;

-- name: images_to_delete
-- parameters: @after BIGINT, @until BIGINT, @name NVARCHAR(MAX), @before CHAR(24)
-- Those of a stretch that have a name, or whose every outcome is older than a time.
SELECT i.image_seq FROM dbo.[image] AS i
WHERE i.image_seq > @after AND i.image_seq <= @until AND (@name IS NULL OR i.name = @name)
  AND (@before IS NULL OR NOT EXISTS (
    SELECT 1 FROM dbo.outcome AS o
    WHERE o.image_seq = i.image_seq AND o.finished_at >= CAST(LEFT(@before, 23) AS DATETIME2(3))))
ORDER BY i.image_seq
OPTION (RECOMPILE);

-- name: delete_images
-- parameters: @image_seqs NVARCHAR(MAX)
-- image_seqs: [image_seq, ...]
DELETE FROM dbo.probability WHERE image_seq IN (SELECT CAST(j.value AS BIGINT) FROM OPENJSON(@image_seqs) AS j);

DELETE FROM dbo.prediction WHERE image_seq IN (SELECT CAST(j.value AS BIGINT) FROM OPENJSON(@image_seqs) AS j);

DELETE FROM dbo.outcome WHERE image_seq IN (SELECT CAST(j.value AS BIGINT) FROM OPENJSON(@image_seqs) AS j);

DELETE FROM dbo.[image] WHERE image_seq IN (SELECT CAST(j.value AS BIGINT) FROM OPENJSON(@image_seqs) AS j);

-- name: beat_schedule
-- parameters: @name NVARCHAR(200), @times NVARCHAR(MAX), @command NVARCHAR(MAX), @holder NVARCHAR(512), @next_due CHAR(24)
UPDATE dbo.schedule WITH (UPDLOCK, HOLDLOCK) SET times = @times, command = @command, holder = @holder,
  heartbeat_at = SYSUTCDATETIME(), next_due_at = CAST(LEFT(@next_due, 23) AS DATETIME2(3))
WHERE name = @name;
IF @@ROWCOUNT = 0
  INSERT INTO dbo.schedule (name, times, command, holder, heartbeat_at, next_due_at)
  VALUES (@name, @times, @command, @holder, SYSUTCDATETIME(), CAST(LEFT(@next_due, 23) AS DATETIME2(3)));

-- name: end_due
-- parameters: @name NVARCHAR(200), @due CHAR(24), @last NVARCHAR(MAX)
UPDATE dbo.schedule SET ended_due_at = CAST(LEFT(@due, 23) AS DATETIME2(3)), last = @last WHERE name = @name;

-- name: schedules
-- parameters:
SELECT name, times, command, holder, heartbeat_at,
       DATEDIFF_BIG(SECOND, heartbeat_at, SYSUTCDATETIME()) AS silent_seconds, next_due_at, ended_due_at, last
FROM dbo.schedule ORDER BY name;

-- name: count_outcomes
-- parameters: @run_id NVARCHAR(64)
SELECT status, COUNT_BIG(*) AS images FROM dbo.outcome WHERE run_id = @run_id GROUP BY status;

-- name: count_needs_review
-- parameters: @run_id NVARCHAR(64)
-- Photos of a run with at least one answer that asks for a person's eye.
SELECT COUNT_BIG(*) AS images FROM dbo.outcome AS o
WHERE o.run_id = @run_id AND o.status = 'classified' AND EXISTS (
  SELECT 1 FROM dbo.task AS t
  INNER JOIN dbo.prediction AS p ON p.task_seq = t.task_seq
  WHERE t.model_seq = o.model_seq AND p.image_seq = o.image_seq AND p.needs_review = 1);

-- name: runs
-- parameters: @run_id NVARCHAR(64), @failed BIT, @limit BIGINT
SELECT TOP (@limit) run_id, command, source, model, settings, host, started_at, heartbeat_at, finished_at, status,
       exit_code, message, listed, new, classified, failed, quarantined, needs_review
FROM dbo.run
WHERE (@run_id IS NULL OR run_id = @run_id) AND (@failed = 0 OR exit_code IS NULL OR exit_code <> 0)
ORDER BY started_at DESC, run_seq DESC;

-- name: run_summary
-- parameters: @run_id NVARCHAR(64)
-- By task and label: how many photos of a run, their mean probability, how many ask for a look.
SELECT t.name AS task, l.label, COUNT_BIG(*) AS images, AVG(p.probability) AS mean_probability,
       SUM(CAST(p.needs_review AS INT)) AS needs_review
FROM dbo.outcome AS o
INNER JOIN dbo.task AS t ON t.model_seq = o.model_seq
INNER JOIN dbo.prediction AS p ON p.task_seq = t.task_seq AND p.image_seq = o.image_seq
INNER JOIN dbo.label AS l ON l.label_seq = p.label_seq
WHERE o.run_id = @run_id AND o.status = 'classified'
GROUP BY t.name, t.position, l.label, l.position
ORDER BY t.position, l.position;

-- name: failure_codes
-- parameters: @run_id NVARCHAR(64)
SELECT stage, code, COUNT_BIG(*) AS images FROM dbo.outcome
WHERE run_id = @run_id AND status <> 'classified'
GROUP BY stage, code ORDER BY images DESC, stage, code;

-- name: last_image
SELECT COALESCE(MAX(image_seq), 0) AS last_image FROM dbo.[image];

-- name: store_counts
SELECT (SELECT COUNT_BIG(*) FROM dbo.outcome) AS outcomes,
       (SELECT COUNT_BIG(*) FROM dbo.[image]) AS images, (SELECT COUNT_BIG(*) FROM dbo.prediction) AS predictions,
       (SELECT COUNT_BIG(*) FROM dbo.probability) AS probabilities,
       (SELECT COUNT_BIG(*) FROM dbo.outcome WHERE status <> 'classified') AS failures,
       (SELECT COUNT_BIG(*) FROM dbo.run) AS runs;

-- name: predictions_between
-- parameters: @after BIGINT, @until BIGINT, @run_id NVARCHAR(64), @model NVARCHAR(300), @task NVARCHAR(200), @label NVARCHAR(400), @min_probability FLOAT, @max_probability FLOAT, @needs_review BIT, @since CHAR(24), @until_time CHAR(24), @name NVARCHAR(MAX)
-- One stretch of images at a time, so that a long export holds no lock and no memory.
SELECT i.name, i.source, i.image_id, m.name + N'@' + m.version AS model, t.name AS task, l.label, p.probability,
       p.needs_review, o.etag, o.run_id, o.finished_at AS classified_at, i.width, i.height, i.sha256
FROM dbo.[image] AS i
CROSS JOIN dbo.task AS t
INNER JOIN dbo.prediction AS p ON p.task_seq = t.task_seq AND p.image_seq = i.image_seq
INNER JOIN dbo.model AS m ON m.model_seq = t.model_seq
INNER JOIN dbo.label AS l ON l.label_seq = p.label_seq
INNER JOIN dbo.outcome AS o ON o.model_seq = t.model_seq AND o.image_seq = i.image_seq
WHERE i.image_seq > @after AND i.image_seq <= @until
  AND (@run_id IS NULL OR o.run_id = @run_id)
  AND (@model IS NULL OR @model IN (m.name, m.version, m.name + N'@' + m.version))
  AND (@task IS NULL OR t.name = @task) AND (@label IS NULL OR l.label = @label)
  AND p.probability >= @min_probability AND p.probability <= @max_probability
  AND (@needs_review IS NULL OR p.needs_review = @needs_review)
  AND (@since IS NULL OR o.finished_at >= CAST(LEFT(@since, 23) AS DATETIME2(3)))
  AND (@until_time IS NULL OR o.finished_at < CAST(LEFT(@until_time, 23) AS DATETIME2(3)))
  AND (@name IS NULL OR i.name = @name)
ORDER BY i.image_seq, t.task_seq
OPTION (RECOMPILE);

-- name: probabilities_between
-- parameters: @after BIGINT, @until BIGINT, @run_id NVARCHAR(64), @model NVARCHAR(300), @task NVARCHAR(200), @label NVARCHAR(400), @min_probability FLOAT, @max_probability FLOAT, @needs_review BIT, @since CHAR(24), @until_time CHAR(24), @name NVARCHAR(MAX)
SELECT i.name, i.source, i.image_id, m.name + N'@' + m.version AS model, t.name AS task, l.label, p.probability,
       o.etag, o.run_id, o.finished_at AS classified_at
FROM dbo.[image] AS i
CROSS JOIN dbo.task AS t
INNER JOIN dbo.label AS l ON l.task_seq = t.task_seq
INNER JOIN dbo.probability AS p ON p.label_seq = l.label_seq AND p.image_seq = i.image_seq
INNER JOIN dbo.model AS m ON m.model_seq = t.model_seq
INNER JOIN dbo.outcome AS o ON o.model_seq = t.model_seq AND o.image_seq = i.image_seq
INNER JOIN dbo.prediction AS best ON best.task_seq = t.task_seq AND best.image_seq = i.image_seq
WHERE i.image_seq > @after AND i.image_seq <= @until
  AND (@run_id IS NULL OR o.run_id = @run_id)
  AND (@model IS NULL OR @model IN (m.name, m.version, m.name + N'@' + m.version))
  AND (@task IS NULL OR t.name = @task) AND (@label IS NULL OR l.label = @label)
  AND p.probability >= @min_probability AND p.probability <= @max_probability
  AND (@needs_review IS NULL OR best.needs_review = @needs_review)
  AND (@since IS NULL OR o.finished_at >= CAST(LEFT(@since, 23) AS DATETIME2(3)))
  AND (@until_time IS NULL OR o.finished_at < CAST(LEFT(@until_time, 23) AS DATETIME2(3)))
  AND (@name IS NULL OR i.name = @name)
ORDER BY i.image_seq, l.label_seq
OPTION (RECOMPILE);

-- name: failures_between
-- parameters: @after BIGINT, @until BIGINT, @run_id NVARCHAR(64), @model NVARCHAR(300), @since CHAR(24), @until_time CHAR(24), @name NVARCHAR(MAX)
SELECT i.name, i.source, i.image_id, m.name + N'@' + m.version AS model, o.stage, o.code, o.message, o.attempts,
       CASE WHEN o.status = 'quarantined' THEN 1 ELSE 0 END AS quarantined, o.etag, o.run_id,
       o.finished_at AS failed_at
FROM dbo.outcome AS o
INNER JOIN dbo.[image] AS i ON i.image_seq = o.image_seq
INNER JOIN dbo.model AS m ON m.model_seq = o.model_seq
WHERE o.status <> 'classified' AND o.image_seq > @after AND o.image_seq <= @until
  AND (@run_id IS NULL OR o.run_id = @run_id)
  AND (@model IS NULL OR @model IN (m.name, m.version, m.name + N'@' + m.version))
  AND (@since IS NULL OR o.finished_at >= CAST(LEFT(@since, 23) AS DATETIME2(3)))
  AND (@until_time IS NULL OR o.finished_at < CAST(LEFT(@until_time, 23) AS DATETIME2(3)))
  AND (@name IS NULL OR i.name = @name)
ORDER BY i.image_seq
OPTION (RECOMPILE);

-- name: models
SELECT m.version, m.name, t.position AS task_position, t.name AS task, t.temperature, t.threshold, l.label
FROM dbo.model AS m
INNER JOIN dbo.task AS t ON t.model_seq = m.model_seq
INNER JOIN dbo.label AS l ON l.task_seq = t.task_seq
ORDER BY m.model_seq, t.position, l.position;

-- name: sources
SELECT DISTINCT source FROM dbo.run;

-- name: image_seqs
-- parameters: @image_ids NVARCHAR(MAX)
-- image_ids: [image_id, ...]
SELECT i.image_seq
FROM OPENJSON(@image_ids) WITH (image_id CHAR(32) '$') AS j
INNER JOIN dbo.[image] AS i ON i.image_id = j.image_id COLLATE Latin1_General_100_BIN2
ORDER BY i.image_seq;

-- What follows moves whole results from one store to another.

-- name: image_ids_between
-- parameters: @after BIGINT, @until BIGINT
SELECT image_id FROM dbo.[image] WHERE image_seq > @after AND image_seq <= @until ORDER BY image_seq;

-- name: saved_outcomes
-- parameters: @image_ids NVARCHAR(MAX)
-- image_ids: [image_id, ...], here and in the next two
SELECT i.image_id, i.source, i.name, i.etag AS image_etag, i.size, i.modified_at, i.width, i.height, i.format, i.sha256,
       i.first_seen_at, m.version AS model, o.etag, o.status, o.stage, o.code, o.message, o.attempts, o.run_id,
       o.finished_at
FROM OPENJSON(@image_ids) WITH (image_id CHAR(32) '$') AS j
INNER JOIN dbo.[image] AS i ON i.image_id = j.image_id COLLATE Latin1_General_100_BIN2
CROSS JOIN dbo.model AS m
INNER JOIN dbo.outcome AS o ON o.model_seq = m.model_seq AND o.image_seq = i.image_seq
ORDER BY i.image_seq, m.model_seq;

-- name: saved_predictions
-- parameters: @image_ids NVARCHAR(MAX)
SELECT i.image_id, m.version AS model, t.position AS task_position, l.position AS label_position, p.probability,
       p.needs_review
FROM OPENJSON(@image_ids) WITH (image_id CHAR(32) '$') AS j
INNER JOIN dbo.[image] AS i ON i.image_id = j.image_id COLLATE Latin1_General_100_BIN2
CROSS JOIN dbo.task AS t
INNER JOIN dbo.prediction AS p ON p.task_seq = t.task_seq AND p.image_seq = i.image_seq
INNER JOIN dbo.label AS l ON l.label_seq = p.label_seq
INNER JOIN dbo.model AS m ON m.model_seq = t.model_seq
ORDER BY i.image_seq, m.model_seq, t.position;

-- name: saved_probabilities
-- parameters: @image_ids NVARCHAR(MAX)
SELECT i.image_id, m.version AS model, t.position AS task_position, p.probability
FROM OPENJSON(@image_ids) WITH (image_id CHAR(32) '$') AS j
INNER JOIN dbo.[image] AS i ON i.image_id = j.image_id COLLATE Latin1_General_100_BIN2
CROSS JOIN dbo.label AS l
INNER JOIN dbo.probability AS p ON p.label_seq = l.label_seq AND p.image_seq = i.image_seq
INNER JOIN dbo.task AS t ON t.task_seq = l.task_seq
INNER JOIN dbo.model AS m ON m.model_seq = t.model_seq
ORDER BY i.image_seq, m.model_seq, t.position, l.position;

-- name: restore_outcomes
-- parameters: @outcomes NVARCHAR(MAX), @model_seq BIGINT
-- Goes after save_outcomes: what that computes is given here as it was.
-- outcomes: [[image_id, etag, status, attempts, run_id, finished_at, first_seen_at], ...]
DECLARE @batch TABLE (
  image_seq     BIGINT        NOT NULL PRIMARY KEY,
  etag          NVARCHAR(256) COLLATE Latin1_General_100_BIN2 NOT NULL,
  status        VARCHAR(16)   COLLATE Latin1_General_100_BIN2 NOT NULL,
  attempts      INT           NOT NULL,
  run_id        NVARCHAR(64)  COLLATE Latin1_General_100_BIN2 NOT NULL,
  finished_at   DATETIME2(3)  NOT NULL,
  first_seen_at DATETIME2(3)  NOT NULL
);
INSERT INTO @batch (image_seq, etag, status, attempts, run_id, finished_at, first_seen_at)
SELECT i.image_seq, j.etag, j.status, j.attempts, j.run_id, CAST(LEFT(j.finished_at, 23) AS DATETIME2(3)),
       CAST(LEFT(j.first_seen_at, 23) AS DATETIME2(3))
FROM OPENJSON(@outcomes) WITH (
  image_id CHAR(32) '$[0]', etag NVARCHAR(256) '$[1]', status VARCHAR(16) '$[2]', attempts INT '$[3]',
  run_id NVARCHAR(64) '$[4]', finished_at CHAR(24) '$[5]', first_seen_at CHAR(24) '$[6]') AS j
INNER JOIN dbo.[image] AS i ON i.image_id = j.image_id COLLATE Latin1_General_100_BIN2;

UPDATE o SET etag = b.etag, status = b.status, attempts = b.attempts, run_id = b.run_id, finished_at = b.finished_at
FROM @batch AS b
INNER JOIN dbo.outcome AS o ON o.model_seq = @model_seq AND o.image_seq = b.image_seq
OPTION (LOOP JOIN, FORCE ORDER);

UPDATE i SET first_seen_at = b.first_seen_at
FROM @batch AS b
INNER JOIN dbo.[image] AS i ON i.image_seq = b.image_seq AND i.first_seen_at > b.first_seen_at;

-- name: restore_runs
-- parameters: @runs NVARCHAR(MAX)
-- runs: [{"run_id": ..., ...}, ...]; those that are there stay as they are.
INSERT INTO dbo.run (run_id, command, source, model, settings, host, started_at, heartbeat_at, finished_at, status,
                     exit_code, message, listed, new, classified, failed, quarantined, needs_review)
SELECT j.run_id, j.command, j.source, j.model, j.settings, j.host, CAST(LEFT(j.started_at, 23) AS DATETIME2(3)),
       CAST(LEFT(j.heartbeat_at, 23) AS DATETIME2(3)), CAST(NULLIF(LEFT(j.finished_at, 23), '') AS DATETIME2(3)),
       j.status, NULLIF(j.exit_code, -1), NULLIF(j.message, N''), NULLIF(j.listed, -1), NULLIF(j.new, -1),
       NULLIF(j.classified, -1), NULLIF(j.failed, -1), NULLIF(j.quarantined, -1), NULLIF(j.needs_review, -1)
FROM OPENJSON(@runs) WITH (
  run_id NVARCHAR(64), command NVARCHAR(64), source NVARCHAR(MAX), model NVARCHAR(300), settings NVARCHAR(MAX),
  host NVARCHAR(256), started_at CHAR(24), heartbeat_at CHAR(24), finished_at CHAR(24), status VARCHAR(16),
  exit_code INT, message NVARCHAR(MAX), listed BIGINT, new BIGINT, classified BIGINT, failed BIGINT,
  quarantined BIGINT, needs_review BIGINT) AS j
WHERE NOT EXISTS (
  SELECT 1 FROM dbo.run AS r WITH (UPDLOCK, HOLDLOCK) WHERE r.run_id = j.run_id COLLATE Latin1_General_100_BIN2);
