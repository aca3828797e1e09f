"""Episodes under way: passes that are paused at a block, and what a decision leads to."""
