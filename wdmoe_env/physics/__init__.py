"""Channel, latency and metric in numpy, batched over a leading axis; usable without torch."""
