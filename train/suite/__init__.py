"""The multiple-choice suite: built from held-out documents, measured against a trigram with a cache."""
