"""Runs the main job by itself: when (times), one night of it (night), and for years (keeper)."""
