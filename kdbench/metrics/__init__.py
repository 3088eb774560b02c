"""What a number means: exact metrics, their curves, the formulas of older code, evaluation presets."""
