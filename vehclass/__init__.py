"""vehclass turns a container of vehicle photos into rows in a database, every night, on its own."""

__version__ = "0.1.0"
