"""Analytical decisions in numpy, batched over a leading axis; usable without torch."""
