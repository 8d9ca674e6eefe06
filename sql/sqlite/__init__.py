"""SQLite: numbered migrations and the named queries."""
