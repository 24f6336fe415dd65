"""A load generator for any runtime extension: `fastclaw bench`."""
