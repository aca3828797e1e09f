"""Policies with one interface: baselines, the analytical optimizer, and learned ones."""

from wdmoe_env.policies.registry import make_policy, policy_names, reads_hidden_states, trained_names, weights_file

__all__ = ["make_policy", "policy_names", "reads_hidden_states", "trained_names", "weights_file"]
