"""What `fastclaw mcp` serves: one sandbox as tools, for any client of the Model Context Protocol."""
