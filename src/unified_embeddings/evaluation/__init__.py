"""How well a model retrieves, and what it costs."""
