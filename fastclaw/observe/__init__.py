"""What is told about a run: logs and histograms."""
