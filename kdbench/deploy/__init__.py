"""Detectors outside of kdbench: one file from pixels to map and score, and the runtimes that run it."""
