-- What `vehclass schedule` leaves of each job: that it is alive, what comes next, and how the last time ended.
CREATE TABLE dbo.schedule (
  name         NVARCHAR(200) COLLATE Latin1_General_100_BIN2 NOT NULL,
  times        NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL, -- when it is due, as a person would say it
  command      NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL, -- what it runs, without secrets
  holder       NVARCHAR(512) COLLATE Latin1_General_100_BIN2 NOT NULL, -- host and process of the scheduler that was heard last
  heartbeat_at DATETIME2(3)  NOT NULL,                                 -- when that was
  next_due_at  DATETIME2(3)  NULL,
  ended_due_at DATETIME2(3)  NULL,                                     -- the last time it was due that came to an end
  last         NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NULL,     -- JSON: how that ended
  CONSTRAINT schedule_once PRIMARY KEY CLUSTERED (name)
);
GO

-- Where the time of a run went.
CREATE TABLE dbo.run_profile (
  run_id  NVARCHAR(64)  COLLATE Latin1_General_100_BIN2 NOT NULL,
  profile NVARCHAR(MAX) COLLATE Latin1_General_100_BIN2 NOT NULL, -- JSON: seconds by stage, how busy the cores were
  CONSTRAINT run_profile_once PRIMARY KEY CLUSTERED (run_id)
);
GO

INSERT INTO dbo.schema_migration (version, name, applied_at)
SELECT 3, N'0003_schedules.sql', SYSUTCDATETIME()
WHERE NOT EXISTS (SELECT 1 FROM dbo.schema_migration WHERE version = 3);
GO
