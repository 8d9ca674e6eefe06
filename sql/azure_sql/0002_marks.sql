-- What a run that accounted for every name leaves for the next, so that it need not ask about each again.
CREATE TABLE dbo.mark (
  mark_key   CHAR(32)      COLLATE Latin1_General_100_BIN2 NOT NULL, -- 128-bit hash of source, model version, prefixes and patterns
  mark_group CHAR(32)      COLLATE Latin1_General_100_BIN2 NOT NULL, -- 128-bit hash of source and model version
  mark       NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL, -- JSON: when that run began, fingerprints of stretches of names, which to try again; '' when no longer good
  run_id     NVARCHAR(64)  COLLATE Latin1_General_100_BIN2 NOT NULL, -- the last run that made room for its mark here
  left_at    DATETIME2(3)  NOT NULL,
  CONSTRAINT mark_once PRIMARY KEY CLUSTERED (mark_key)
);
GO

CREATE INDEX mark_by_group ON dbo.mark (mark_group);
GO

-- Rows that somebody deletes are to come back: every name is asked about again, and a run that is at it leaves no mark.
CREATE TRIGGER dbo.outcome_deleted ON dbo.outcome AFTER DELETE AS
BEGIN
  SET NOCOUNT ON;
  DELETE FROM dbo.mark;
END;
GO

INSERT INTO dbo.schema_migration (version, name, applied_at)
SELECT 2, N'0002_marks.sql', SYSUTCDATETIME()
WHERE NOT EXISTS (SELECT 1 FROM dbo.schema_migration WHERE version = 2);
GO
