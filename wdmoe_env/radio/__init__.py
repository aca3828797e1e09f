"""Channels from other simulators; each needs an extra and is imported when a configuration names it."""
