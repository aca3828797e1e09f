"""The language model's recipe: a small mixture of experts trained on the token shards."""
