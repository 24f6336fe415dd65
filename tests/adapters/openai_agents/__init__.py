"""The client of the OpenAI Agents SDK, against the SDK as PyPI has it."""
