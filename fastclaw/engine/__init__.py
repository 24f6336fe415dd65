"""Podman: the REST lane on the hot path, images and containers on the slow one, and a private service."""
