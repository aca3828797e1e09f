"""Adapters to libraries that do not take Gymnasium's own batched interface."""
