"""Splitting a real mixture-of-experts model: pause at every MoE block, decide, go on."""
