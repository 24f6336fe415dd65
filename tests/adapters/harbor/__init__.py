"""The adapter under Harbor itself: its command line with its oracle agent, and its interface."""
