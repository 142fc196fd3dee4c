"""What the other rooms have done, as metrics and spans; nothing below knows about this room."""
