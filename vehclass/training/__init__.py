"""Labelled photos in, a model folder out."""
