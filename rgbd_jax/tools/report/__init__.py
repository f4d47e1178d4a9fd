"""One HTML page about a run: what it is, how it trained, which classes and clips it gets wrong, and where it looked."""
