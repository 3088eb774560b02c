"""kdbench compares knowledge-distillation anomaly detectors; this package holds the runner."""

__version__ = "0.1.0"
