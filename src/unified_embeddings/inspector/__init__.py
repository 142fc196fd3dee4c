"""The web page that shows what a search finds, and why: pages for a browser on this machine."""
