"""fastclaw as a sandbox of inspect-ai, held against inspect-ai's own checks and run in whole evaluations."""
