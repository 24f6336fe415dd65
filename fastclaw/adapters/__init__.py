"""Providers for other people's tools, each thin, over `fastclaw.sandbox`, imported only by its tool."""
