"""Which models exist, and what their files say."""
