"""Moving an index to another model: prove it, make it, undo it."""
