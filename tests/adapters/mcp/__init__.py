"""`fastclaw mcp`, with the official SDK's client over real pipes."""
