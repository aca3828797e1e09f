"""Recipes: the text, the language model that ships, and the agents."""
