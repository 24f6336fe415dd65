"""The provider of NeMo Gym, against the tool as PyPI has it."""
