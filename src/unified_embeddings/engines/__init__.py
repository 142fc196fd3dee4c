"""What runs a forward pass; each heavy library has a module of its own."""
