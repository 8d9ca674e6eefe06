-- What vehclass runs on SQLite, each under its name: a statement, or several that go together. Rows of results are
-- bound where it says `VALUES :name`, up to a thousand a statement, which takes half of what JSON takes; other rows
-- travel as JSON parameters, so that the number of statements does not grow with them.

-- name: add_model
INSERT INTO model (version, name, first_used_at) VALUES (:version, :name, :now)
ON CONFLICT (version) DO NOTHING;

-- name: model_seq
SELECT model_seq FROM model WHERE version = :version;

-- name: add_tasks
-- tasks: [[position, name, temperature, threshold], ...]
INSERT INTO task (model_seq, position, name, temperature, threshold)
SELECT :model_seq, value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(:tasks)
WHERE true ON CONFLICT (model_seq, position) DO NOTHING;

-- name: add_labels
-- labels: [[task position, position, label], ...]
INSERT INTO label (task_seq, position, label)
SELECT t.task_seq, j.value ->> 1, j.value ->> 2
FROM json_each(:labels) AS j
JOIN task AS t ON t.model_seq = :model_seq AND t.position = j.value ->> 0
WHERE true ON CONFLICT (task_seq, position) DO NOTHING;

-- name: unseen
-- page: [[position, image_id, etag], ...]; answers the positions of those that are new.
SELECT page.value ->> 0 AS position
FROM json_each(:page) AS page
LEFT JOIN image AS i ON i.image_id = page.value ->> 1
LEFT JOIN outcome AS o ON o.model_seq = :model_seq AND o.image_seq = i.image_seq
WHERE o.image_seq IS NULL
   OR o.etag <> page.value ->> 2
   OR o.status = 'failed'
   OR (o.status = 'quarantined' AND :retry_failed)
ORDER BY page.key;

-- name: holds_lease
SELECT 1 FROM lease WHERE lease_key = :lease_key AND fence = :fence AND run_id = :run_id;

-- name: save_images
-- images: [[position, image_id, source, name, etag, size, modified_at, width, height, format, sha256], ...];
-- answers each one's position and number.
INSERT INTO image (image_id, source, name, etag, size, modified_at, width, height, format, sha256, first_seen_at)
SELECT column2, column3, column4, column5, column6, column7,
       nullif(column8, -1), nullif(column9, -1), nullif(column10, ''), nullif(column11, ''), :now
FROM (VALUES :images)
WHERE true ON CONFLICT (image_id) DO UPDATE SET
  etag = excluded.etag, size = excluded.size, modified_at = excluded.modified_at,
  -- What another model's run has seen of the same content stays, when this one could not read it.
  width = iif(excluded.etag = image.etag, coalesce(excluded.width, image.width), excluded.width),
  height = iif(excluded.etag = image.etag, coalesce(excluded.height, image.height), excluded.height),
  format = iif(excluded.etag = image.etag, coalesce(excluded.format, image.format), excluded.format),
  sha256 = iif(excluded.etag = image.etag, coalesce(excluded.sha256, image.sha256), excluded.sha256);

SELECT j.value ->> 0, i.image_seq FROM json_each(:images) AS j CROSS JOIN image AS i ON i.image_id = j.value ->> 1;

-- name: save_outcomes
-- outcomes: [[image_seq, etag, stage, code, message, permanent], ...]; no stage means classified.
-- predictions: [[image_seq, label_seq, probability, needs_review], ...]
-- probabilities: [[image_seq, label_seq, probability], ...]
-- The attempts are the runs that tried: the same batch saved twice by one run is one attempt.
INSERT INTO outcome (model_seq, image_seq, etag, status, stage, code, message, attempts, run_id, finished_at)
SELECT :model_seq, column1, column2,
       CASE WHEN column3 = '' THEN 'classified'
            WHEN column6 OR :max_attempts <= 1 THEN 'quarantined' ELSE 'failed' END,
       nullif(column3, ''), nullif(column4, ''), nullif(column5, ''), 1, :run_id, :now
FROM (VALUES :outcomes)
WHERE true ON CONFLICT (model_seq, image_seq) DO UPDATE SET
  attempts = CASE WHEN outcome.etag <> excluded.etag OR outcome.status = 'classified' THEN 1
                  ELSE outcome.attempts + (outcome.run_id <> excluded.run_id) END,
  status = iif(excluded.status = 'failed' AND outcome.etag = excluded.etag AND outcome.status <> 'classified'
               AND outcome.attempts + (outcome.run_id <> excluded.run_id) >= :max_attempts,
               'quarantined', excluded.status),
  etag = excluded.etag, stage = excluded.stage, code = excluded.code, message = excluded.message,
  run_id = excluded.run_id, finished_at = excluded.finished_at;

-- A photo that was replaced and now fails keeps no answer of its former content.
DELETE FROM prediction
WHERE task_seq IN (SELECT task_seq FROM task WHERE model_seq = :model_seq)
  AND image_seq IN (SELECT value ->> 0 FROM json_each(:outcomes) WHERE value ->> 2 <> '');

DELETE FROM probability
WHERE label_seq IN (SELECT label_seq FROM label JOIN task USING (task_seq) WHERE model_seq = :model_seq)
  AND image_seq IN (SELECT value ->> 0 FROM json_each(:outcomes) WHERE value ->> 2 <> '');

INSERT INTO prediction (task_seq, image_seq, label_seq, probability, needs_review)
SELECT l.task_seq, j.column1, l.label_seq, j.column3, j.column4
FROM (VALUES :predictions) AS j CROSS JOIN label AS l ON l.label_seq = j.column2
WHERE true ON CONFLICT (task_seq, image_seq) DO UPDATE SET
  label_seq = excluded.label_seq, probability = excluded.probability, needs_review = excluded.needs_review;

INSERT INTO probability (image_seq, label_seq, probability) VALUES :probabilities
ON CONFLICT (label_seq, image_seq) DO UPDATE SET probability = excluded.probability;

-- name: start_run
INSERT INTO run (run_id, command, source, model, settings, host, started_at, heartbeat_at, status)
VALUES (:run_id, :command, :source, :model, :settings, :host, :now, :now, 'running')
ON CONFLICT (run_id) DO NOTHING;

-- name: end_run
UPDATE run SET finished_at = :now, heartbeat_at = :now, status = :status, exit_code = :exit_code,
  message = :message, listed = :listed, new = :new, classified = :classified, failed = :failed,
  quarantined = :quarantined, needs_review = :needs_review
WHERE run_id = :run_id;

-- name: save_profile
INSERT INTO run_profile (run_id, profile) VALUES (:run_id, :profile)
ON CONFLICT (run_id) DO UPDATE SET profile = excluded.profile;

-- name: run_profile
SELECT profile FROM run_profile WHERE run_id = :run_id;

-- name: end_dead_runs
-- A run whose lease has passed to another did not end by itself: it was killed.
UPDATE run SET status = 'interrupted', finished_at = heartbeat_at, message = 'killed; its work was taken up by a later run'
WHERE status = 'running' AND run_id = :run_id;

-- name: beat
UPDATE run SET heartbeat_at = :now WHERE run_id = :run_id;

-- name: read_lease
SELECT run_id, holder, fence, expires_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS live
FROM lease WHERE lease_key = :lease_key;

-- name: take_lease
-- The store's clock decides, so that two machines agree.
INSERT INTO lease (lease_key, fence, run_id, holder, acquired_at, expires_at)
VALUES (:lease_key, 1, :run_id, :holder, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'),
        strftime('%Y-%m-%dT%H:%M:%fZ', 'now', :seconds || ' seconds'))
ON CONFLICT (lease_key) DO UPDATE SET
  fence = lease.fence + 1, run_id = excluded.run_id, holder = excluded.holder,
  acquired_at = excluded.acquired_at, expires_at = excluded.expires_at;

-- name: renew_lease
UPDATE lease SET expires_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', :seconds || ' seconds')
WHERE lease_key = :lease_key AND fence = :fence AND run_id = :run_id;

-- name: free_lease
UPDATE lease SET run_id = NULL WHERE lease_key = :lease_key AND fence = :fence AND run_id = :run_id;

-- name: read_marks
SELECT mark_key, mark FROM mark WHERE mark_group = :mark_group;

-- name: open_mark
INSERT INTO mark (mark_key, mark_group, mark, run_id, left_at) VALUES (:mark_key, :mark_group, '', :run_id, :now)
ON CONFLICT (mark_key) DO UPDATE SET run_id = excluded.run_id;

-- name: drop_marks
-- mark_keys: [key, ...]
UPDATE mark SET mark = '' WHERE mark_key IN (SELECT value FROM json_each(:mark_keys));

-- name: leave_mark
UPDATE mark SET mark = :mark, left_at = :now WHERE mark_key = :mark_key AND run_id = :run_id;

-- name: images_to_delete
-- Those of a stretch that have a name, or whose every outcome is older than a time.
SELECT i.image_seq FROM image AS i
WHERE i.image_seq > :after AND i.image_seq <= :until AND (:name IS NULL OR i.name = :name)
  AND (:before IS NULL OR NOT EXISTS (
    SELECT 1 FROM model AS m JOIN outcome AS o ON o.model_seq = m.model_seq AND o.image_seq = i.image_seq
    WHERE o.finished_at >= :before))
ORDER BY i.image_seq;

-- name: delete_images
-- image_seqs: [image_seq, ...]
DELETE FROM probability WHERE (label_seq, image_seq) IN (
  SELECT l.label_seq, j.value FROM json_each(:image_seqs) AS j CROSS JOIN label AS l);

DELETE FROM prediction WHERE (task_seq, image_seq) IN (
  SELECT t.task_seq, j.value FROM json_each(:image_seqs) AS j CROSS JOIN task AS t);

DELETE FROM outcome WHERE (model_seq, image_seq) IN (
  SELECT m.model_seq, j.value FROM json_each(:image_seqs) AS j CROSS JOIN model AS m);

DELETE FROM image WHERE image_seq IN (SELECT value FROM json_each(:image_seqs));

-- name: beat_schedule
INSERT INTO schedule (name, times, command, holder, heartbeat_at, next_due_at)
VALUES (:name, :times, :command, :holder, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), :next_due)
ON CONFLICT (name) DO UPDATE SET
  times = excluded.times, command = excluded.command, holder = excluded.holder,
  heartbeat_at = excluded.heartbeat_at, next_due_at = excluded.next_due_at;

-- name: end_due
UPDATE schedule SET ended_due_at = :due, last = :last WHERE name = :name;

-- name: schedules
SELECT name, times, command, holder, heartbeat_at,
       CAST(round((julianday('now') - julianday(heartbeat_at)) * 86400) AS INTEGER) AS silent_seconds,
       next_due_at, ended_due_at, last
FROM schedule ORDER BY name;

-- name: count_outcomes
SELECT status, count(*) FROM outcome WHERE run_id = :run_id GROUP BY status;

-- name: count_needs_review
-- Photos of a run with at least one answer that asks for a person's eye.
SELECT count(*) FROM outcome AS o
WHERE o.run_id = :run_id AND o.status = 'classified' AND EXISTS (
  SELECT 1 FROM task AS t JOIN prediction AS p USING (task_seq)
  WHERE t.model_seq = o.model_seq AND p.image_seq = o.image_seq AND p.needs_review);

-- name: runs
SELECT run_id, command, source, model, settings, host, started_at, heartbeat_at, finished_at, status, exit_code,
       message, listed, new, classified, failed, quarantined, needs_review
FROM run WHERE (:run_id IS NULL OR run_id = :run_id) AND (NOT :failed OR exit_code IS NULL OR exit_code <> 0)
ORDER BY started_at DESC, rowid DESC LIMIT :limit;

-- name: run_summary
-- By task and label: how many photos of a run, their mean probability, how many ask for a look.
SELECT t.name AS task, l.label, count(*) AS images, avg(p.probability) AS mean_probability,
       sum(p.needs_review) AS needs_review
FROM outcome AS o
CROSS JOIN task AS t ON t.model_seq = o.model_seq
CROSS JOIN prediction AS p ON p.task_seq = t.task_seq AND p.image_seq = o.image_seq
JOIN label AS l ON l.label_seq = p.label_seq
WHERE o.run_id = :run_id AND o.status = 'classified'
GROUP BY t.task_seq, l.label_seq ORDER BY t.position, l.position;

-- name: failure_codes
SELECT stage, code, count(*) AS images FROM outcome
WHERE run_id = :run_id AND status <> 'classified'
GROUP BY stage, code ORDER BY images DESC, stage, code;

-- name: last_image
SELECT coalesce(max(image_seq), 0) FROM image;

-- name: store_counts
SELECT (SELECT count(*) FROM outcome) AS outcomes, (SELECT count(*) FROM image) AS images, (SELECT count(*) FROM prediction) AS predictions,
       (SELECT count(*) FROM probability) AS probabilities,
       (SELECT count(*) FROM outcome WHERE status <> 'classified') AS failures, (SELECT count(*) FROM run) AS runs;

-- name: predictions_between
-- One stretch of images at a time, so that a long export holds no lock and no memory.
SELECT i.name, i.source, i.image_id, m.name || '@' || m.version AS model, t.name AS task, l.label, p.probability,
       p.needs_review, o.etag, o.run_id, o.finished_at AS classified_at, i.width, i.height, i.sha256
FROM image AS i
CROSS JOIN task AS t
CROSS JOIN prediction AS p ON p.task_seq = t.task_seq AND p.image_seq = i.image_seq
JOIN model AS m ON m.model_seq = t.model_seq
JOIN label AS l ON l.label_seq = p.label_seq
JOIN outcome AS o ON o.model_seq = t.model_seq AND o.image_seq = i.image_seq
WHERE i.image_seq > :after AND i.image_seq <= :until
  AND (:run_id IS NULL OR o.run_id = :run_id)
  AND (:model IS NULL OR :model IN (m.name, m.version, m.name || '@' || m.version))
  AND (:task IS NULL OR t.name = :task) AND (:label IS NULL OR l.label = :label)
  AND p.probability >= :min_probability AND p.probability <= :max_probability
  AND (:needs_review IS NULL OR p.needs_review = :needs_review)
  AND (:since IS NULL OR o.finished_at >= :since) AND (:until_time IS NULL OR o.finished_at < :until_time)
  AND (:name IS NULL OR i.name = :name)
ORDER BY i.image_seq, t.task_seq;

-- name: probabilities_between
SELECT i.name, i.source, i.image_id, m.name || '@' || m.version AS model, t.name AS task, l.label, p.probability,
       o.etag, o.run_id, o.finished_at AS classified_at
FROM image AS i
CROSS JOIN task AS t
CROSS JOIN label AS l ON l.task_seq = t.task_seq
CROSS JOIN probability AS p ON p.label_seq = l.label_seq AND p.image_seq = i.image_seq
JOIN model AS m ON m.model_seq = t.model_seq
JOIN outcome AS o ON o.model_seq = t.model_seq AND o.image_seq = i.image_seq
JOIN prediction AS top ON top.task_seq = t.task_seq AND top.image_seq = i.image_seq
WHERE i.image_seq > :after AND i.image_seq <= :until
  AND (:run_id IS NULL OR o.run_id = :run_id)
  AND (:model IS NULL OR :model IN (m.name, m.version, m.name || '@' || m.version))
  AND (:task IS NULL OR t.name = :task) AND (:label IS NULL OR l.label = :label)
  AND p.probability >= :min_probability AND p.probability <= :max_probability
  AND (:needs_review IS NULL OR top.needs_review = :needs_review)
  AND (:since IS NULL OR o.finished_at >= :since) AND (:until_time IS NULL OR o.finished_at < :until_time)
  AND (:name IS NULL OR i.name = :name)
ORDER BY i.image_seq, l.label_seq;

-- name: failures_between
SELECT i.name, i.source, i.image_id, m.name || '@' || m.version AS model, o.stage, o.code, o.message, o.attempts,
       o.status = 'quarantined' AS quarantined, o.etag, o.run_id, o.finished_at AS failed_at
FROM outcome AS o INDEXED BY outcome_not_classified
JOIN image AS i USING (image_seq)
JOIN model AS m USING (model_seq)
WHERE o.status <> 'classified' AND i.image_seq > :after AND i.image_seq <= :until
  AND (:run_id IS NULL OR o.run_id = :run_id)
  AND (:model IS NULL OR :model IN (m.name, m.version, m.name || '@' || m.version))
  AND (:since IS NULL OR o.finished_at >= :since) AND (:until_time IS NULL OR o.finished_at < :until_time)
  AND (:name IS NULL OR i.name = :name)
ORDER BY i.image_seq;

-- name: label_seqs
SELECT t.name AS task, l.label, l.label_seq FROM label AS l JOIN task AS t USING (task_seq)
WHERE t.model_seq = :model_seq ORDER BY t.position, l.position;

-- name: models
SELECT m.version, m.name, t.position AS task_position, t.name AS task, t.temperature, t.threshold, l.label
FROM model AS m JOIN task AS t USING (model_seq) JOIN label AS l USING (task_seq)
ORDER BY m.model_seq, t.position, l.position;

-- name: sources
SELECT DISTINCT source FROM run;

-- name: image_seqs
-- image_ids: [image_id, ...]
SELECT i.image_seq FROM json_each(:image_ids) AS j JOIN image AS i ON i.image_id = j.value ORDER BY i.image_seq;

-- What follows moves whole results from one store to another.

-- name: image_ids_between
SELECT image_id FROM image WHERE image_seq > :after AND image_seq <= :until ORDER BY image_seq;

-- name: saved_outcomes
-- image_ids: [image_id, ...], here and in the next two
SELECT i.image_id, i.source, i.name, i.etag AS image_etag, i.size, i.modified_at, i.width, i.height, i.format, i.sha256,
       i.first_seen_at, m.version AS model, o.etag, o.status, o.stage, o.code, o.message, o.attempts, o.run_id,
       o.finished_at
FROM json_each(:image_ids) AS j
CROSS JOIN image AS i ON i.image_id = j.value
CROSS JOIN model AS m
CROSS JOIN outcome AS o ON o.model_seq = m.model_seq AND o.image_seq = i.image_seq
ORDER BY i.image_seq, m.model_seq;

-- name: saved_predictions
SELECT i.image_id, m.version AS model, t.position AS task_position, l.position AS label_position, p.probability,
       p.needs_review
FROM json_each(:image_ids) AS j
CROSS JOIN image AS i ON i.image_id = j.value
CROSS JOIN task AS t
CROSS JOIN prediction AS p ON p.task_seq = t.task_seq AND p.image_seq = i.image_seq
JOIN label AS l ON l.label_seq = p.label_seq
JOIN model AS m ON m.model_seq = t.model_seq
ORDER BY i.image_seq, m.model_seq, t.position;

-- name: saved_probabilities
SELECT i.image_id, m.version AS model, t.position AS task_position, p.probability
FROM json_each(:image_ids) AS j
CROSS JOIN image AS i ON i.image_id = j.value
CROSS JOIN label AS l
CROSS JOIN probability AS p ON p.label_seq = l.label_seq AND p.image_seq = i.image_seq
JOIN task AS t ON t.task_seq = l.task_seq
JOIN model AS m ON m.model_seq = t.model_seq
ORDER BY i.image_seq, m.model_seq, t.position, l.position;

-- name: restore_outcomes
-- Goes after save_batch: what that computes is given here as it was.
-- outcomes: [[image_id, etag, status, attempts, run_id, finished_at, first_seen_at], ...]
UPDATE outcome SET etag = j.value ->> 1, status = j.value ->> 2, attempts = j.value ->> 3, run_id = j.value ->> 4,
  finished_at = j.value ->> 5
FROM json_each(:outcomes) AS j JOIN image AS i ON i.image_id = j.value ->> 0
WHERE outcome.model_seq = :model_seq AND outcome.image_seq = i.image_seq;

UPDATE image SET first_seen_at = min(first_seen_at, j.value ->> 6)
FROM json_each(:outcomes) AS j WHERE image.image_id = j.value ->> 0;

-- name: restore_runs
-- runs: [{"run_id": ..., ...}, ...]; those that are there stay as they are.
INSERT INTO run (run_id, command, source, model, settings, host, started_at, heartbeat_at, finished_at, status,
                 exit_code, message, listed, new, classified, failed, quarantined, needs_review)
SELECT value ->> 'run_id', value ->> 'command', value ->> 'source', value ->> 'model', value ->> 'settings',
       value ->> 'host', value ->> 'started_at', value ->> 'heartbeat_at', nullif(value ->> 'finished_at', ''),
       value ->> 'status', nullif(value ->> 'exit_code', -1), nullif(value ->> 'message', ''), nullif(value ->> 'listed', -1),
       nullif(value ->> 'new', -1), nullif(value ->> 'classified', -1), nullif(value ->> 'failed', -1),
       nullif(value ->> 'quarantined', -1), nullif(value ->> 'needs_review', -1)
FROM json_each(:runs) WHERE true ON CONFLICT (run_id) DO NOTHING;
