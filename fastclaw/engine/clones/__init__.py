"""Containers that are made without the engine, after one that it has made."""
