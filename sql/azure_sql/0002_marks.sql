-- What a run that accounted for every name leaves for the next, so that it need not ask about each again.
CREATE TABLE dbo.mark (
  mark_key CHAR(32)      COLLATE Latin1_General_100_BIN2 NOT NULL, -- 128-bit hash of source, model version, prefix and patterns
  mark     NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL, -- JSON: when that run began, fingerprints of stretches of names, which to try again
  left_at  DATETIME2(3)  NOT NULL,
  CONSTRAINT mark_once PRIMARY KEY CLUSTERED (mark_key)
);
GO

-- Rows that somebody deletes are to come back: every name is asked about again.
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
