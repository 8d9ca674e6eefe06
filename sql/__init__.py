"""The SQL of every store, as files: migrations and named queries (read by vehclass.stores.queries)."""
