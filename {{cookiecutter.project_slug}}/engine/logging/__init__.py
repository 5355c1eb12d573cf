"""Loggers and the progress of training."""
