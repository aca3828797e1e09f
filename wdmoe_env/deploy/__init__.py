"""What a split model needs on its devices: memory, and a placement of the experts that fits it and is fast."""
