"""Starts processes by the engine's own exec, where no spawner can run: remote engines, other architectures."""
