-- The statements that vehclass runs on SQLite, each under its name. A batch travels as one JSON
-- parameter, so that the number of statements does not grow with it.

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
-- page: [[image_id, etag], ...]; answers the positions of those that are new.
SELECT page.key
FROM json_each(:page) AS page
LEFT JOIN image AS i ON i.image_id = page.value ->> 0
LEFT JOIN outcome AS o ON o.model_seq = :model_seq AND o.image_seq = i.image_seq
WHERE o.image_seq IS NULL
   OR o.etag <> page.value ->> 1
   OR o.status = 'failed'
   OR (o.status = 'quarantined' AND :retry_failed)
ORDER BY page.key;

-- name: holds_lease
SELECT 1 FROM lease WHERE lease_key = :lease_key AND fence = :fence AND run_id = :run_id;

-- name: save_images
-- rows: [[image_id, source, name, etag, size, modified_at, width, height, format, sha256], ...]
INSERT INTO image (image_id, source, name, etag, size, modified_at, width, height, format, sha256, first_seen_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
       value ->> 6, value ->> 7, value ->> 8, value ->> 9, :now
FROM json_each(:images)
WHERE true ON CONFLICT (image_id) DO UPDATE SET
  etag = excluded.etag, size = excluded.size, modified_at = excluded.modified_at,
  -- What another model's run has seen of the same content stays, when this one could not read it.
  width = iif(excluded.etag = image.etag, coalesce(excluded.width, image.width), excluded.width),
  height = iif(excluded.etag = image.etag, coalesce(excluded.height, image.height), excluded.height),
  format = iif(excluded.etag = image.etag, coalesce(excluded.format, image.format), excluded.format),
  sha256 = iif(excluded.etag = image.etag, coalesce(excluded.sha256, image.sha256), excluded.sha256);

-- name: save_outcomes
-- outcomes: [[image_id, etag, stage, code, message, permanent], ...]; no stage means classified.
INSERT INTO outcome (model_seq, image_seq, etag, status, stage, code, message, attempts, run_id, finished_at)
SELECT :model_seq, i.image_seq, j.value ->> 1,
       CASE WHEN j.value ->> 2 IS NULL THEN 'classified'
            WHEN j.value ->> 5 OR :max_attempts <= 1 THEN 'quarantined' ELSE 'failed' END,
       j.value ->> 2, j.value ->> 3, j.value ->> 4, 1, :run_id, :now
FROM json_each(:outcomes) AS j
JOIN image AS i ON i.image_id = j.value ->> 0
WHERE true ON CONFLICT (model_seq, image_seq) DO UPDATE SET
  attempts = iif(outcome.etag = excluded.etag AND outcome.status <> 'classified', outcome.attempts + 1, 1),
  status = iif(excluded.status = 'failed' AND outcome.etag = excluded.etag
               AND outcome.status <> 'classified' AND outcome.attempts + 1 >= :max_attempts,
               'quarantined', excluded.status),
  etag = excluded.etag, stage = excluded.stage, code = excluded.code, message = excluded.message,
  run_id = excluded.run_id, finished_at = excluded.finished_at;

-- name: forget_predictions
-- A photo that was replaced and now fails keeps no answer of its former content.
DELETE FROM prediction
WHERE task_seq IN (SELECT task_seq FROM task WHERE model_seq = :model_seq)
  AND image_seq IN (SELECT i.image_seq FROM json_each(:image_ids) AS j JOIN image AS i ON i.image_id = j.value);

-- name: forget_probabilities
DELETE FROM probability
WHERE label_seq IN (SELECT label_seq FROM label JOIN task USING (task_seq) WHERE model_seq = :model_seq)
  AND image_seq IN (SELECT i.image_seq FROM json_each(:image_ids) AS j JOIN image AS i ON i.image_id = j.value);

-- name: save_predictions
-- predictions: [[image_id, task position, label position, probability, needs_review], ...]
INSERT INTO prediction (task_seq, image_seq, label_seq, probability, needs_review)
SELECT t.task_seq, i.image_seq, l.label_seq, j.value ->> 3, j.value ->> 4
FROM json_each(:predictions) AS j
JOIN image AS i ON i.image_id = j.value ->> 0
JOIN task AS t ON t.model_seq = :model_seq AND t.position = j.value ->> 1
JOIN label AS l ON l.task_seq = t.task_seq AND l.position = j.value ->> 2
WHERE true ON CONFLICT (task_seq, image_seq) DO UPDATE SET
  label_seq = excluded.label_seq, probability = excluded.probability, needs_review = excluded.needs_review;

-- name: save_probabilities
-- label_seqs: those of the model in the order of its tasks and labels; a row: [image_id, [probability, ...]]
INSERT INTO probability (label_seq, image_seq, probability)
SELECT l.value, i.image_seq, p.value
FROM json_each(:probabilities) AS j
CROSS JOIN image AS i ON i.image_id = j.value ->> 0
CROSS JOIN json_each(j.value, '$[1]') AS p
CROSS JOIN json_each(:label_seqs) AS l ON l.key = p.key
WHERE true ON CONFLICT (label_seq, image_seq) DO UPDATE SET probability = excluded.probability;

-- name: start_run
INSERT INTO run (run_id, command, source, model, settings, host, started_at, heartbeat_at, status)
VALUES (:run_id, :command, :source, :model, :settings, :host, :now, :now, 'running');

-- name: end_run
UPDATE run SET finished_at = :now, heartbeat_at = :now, status = :status, exit_code = :exit_code,
  message = :message, listed = :listed, new = :new, classified = :classified, failed = :failed,
  quarantined = :quarantined, needs_review = :needs_review
WHERE run_id = :run_id;

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
        strftime('%Y-%m-%dT%H:%M:%fZ', 'now', :seconds))
ON CONFLICT (lease_key) DO UPDATE SET
  fence = lease.fence + 1, run_id = excluded.run_id, holder = excluded.holder,
  acquired_at = excluded.acquired_at, expires_at = excluded.expires_at;

-- name: renew_lease
UPDATE lease SET expires_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', :seconds)
WHERE lease_key = :lease_key AND fence = :fence AND run_id = :run_id;

-- name: free_lease
UPDATE lease SET run_id = NULL WHERE lease_key = :lease_key AND fence = :fence AND run_id = :run_id;

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
SELECT (SELECT count(*) FROM image) AS images, (SELECT count(*) FROM prediction) AS predictions,
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
SELECT l.label_seq FROM label AS l JOIN task AS t USING (task_seq)
WHERE t.model_seq = :model_seq ORDER BY t.position, l.position;

-- name: labels
SELECT m.name || '@' || m.version AS model, t.name AS task, group_concat(l.label, ', ') AS labels
FROM model AS m JOIN task AS t USING (model_seq) JOIN label AS l USING (task_seq)
GROUP BY t.task_seq ORDER BY m.model_seq, t.position;
