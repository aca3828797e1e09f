"""The testbed: experts on hosts of their own, tokens over a real wire, latency measured."""
