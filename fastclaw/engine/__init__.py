"""Podman: what is asked of an engine, the containers of an environment, and what they may."""
