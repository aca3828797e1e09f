"""Measurements: ``python -m benchmarks`` runs all of them and writes one table."""
