"""One cell on one device: train, evaluate, time, probe."""
