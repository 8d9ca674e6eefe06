"""Azure Blob Storage as all who need it reach it: options, patience, containers by name or URL."""
