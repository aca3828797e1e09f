"""Paired evaluation of policies; the entries are ``eval.runner.evaluate`` and ``python -m eval``."""
