"""Text of the episodes: token windows over disjoint documents."""
