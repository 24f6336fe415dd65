"""Sandboxes as Python programs use them."""
