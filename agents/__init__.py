"""What learns: the policy classes of Stable-Baselines3 and RLlib, and what their algorithms ask of a policy."""
