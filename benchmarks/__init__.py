"""Measurements: each prints a table with the machine that it ran on."""
