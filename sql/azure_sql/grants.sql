-- The least that a nightly run needs, for a contained user of this database; run it as an administrator
-- after the numbered files. Replace vehclass-night by the name of the managed identity (or app registration)
-- that runs `vehclass classify-batch`. It may neither change the schema nor drop anything. On a SQL Server without
-- Entra ID, write CREATE USER [vehclass-night] FOR LOGIN [...] instead.
CREATE USER [vehclass-night] FROM EXTERNAL PROVIDER;
GO

GRANT SELECT, INSERT, UPDATE ON dbo.[image] TO [vehclass-night];
GRANT SELECT, INSERT ON dbo.model TO [vehclass-night];
GRANT SELECT, INSERT ON dbo.task TO [vehclass-night];
GRANT SELECT, INSERT ON dbo.label TO [vehclass-night];
GRANT SELECT, INSERT, UPDATE ON dbo.outcome TO [vehclass-night];
GRANT SELECT, INSERT, DELETE ON dbo.prediction TO [vehclass-night];
GRANT SELECT, INSERT, DELETE ON dbo.probability TO [vehclass-night];
GRANT SELECT, INSERT, UPDATE ON dbo.run TO [vehclass-night];
GRANT SELECT, INSERT, UPDATE ON dbo.lease TO [vehclass-night];
GRANT SELECT, INSERT, UPDATE ON dbo.mark TO [vehclass-night];
GRANT SELECT, INSERT, UPDATE ON dbo.schedule TO [vehclass-night];
GRANT SELECT, INSERT, UPDATE ON dbo.run_profile TO [vehclass-night];
GRANT SELECT ON dbo.schema_migration TO [vehclass-night];
GO

-- `vehclass results delete` needs more, and is not for the nightly user:
-- GRANT SELECT, DELETE ON dbo.[image], dbo.outcome, dbo.prediction, dbo.probability, dbo.mark: one statement for each.

-- An analyst reads, and nothing else.
-- CREATE USER [analysts] FROM EXTERNAL PROVIDER;
-- GRANT SELECT ON dbo.image_prediction TO [analysts];
-- GRANT SELECT ON dbo.image_probability TO [analysts];
-- GRANT SELECT ON dbo.image_failure TO [analysts];
-- GRANT SELECT ON dbo.[image] TO [analysts];
-- GRANT SELECT ON dbo.run TO [analysts];
-- GRANT SELECT ON dbo.schema_migration TO [analysts]; -- for `vehclass results`, which looks whose tables these are
