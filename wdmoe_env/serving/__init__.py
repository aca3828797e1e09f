"""Cells that serve requests: a queue, slots with a cache each, passes over what runs, and a clock."""
