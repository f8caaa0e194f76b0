"""Scoring predictions: samples, metrics, calibration, gates, comparison, report."""
