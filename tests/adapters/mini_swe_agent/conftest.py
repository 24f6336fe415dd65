"""mini-swe-agent makes a directory for its settings where it is imported: for these tests not in the user's home."""

import os
from tempfile import TemporaryDirectory

_settings = TemporaryDirectory()
os.environ["MSWEA_GLOBAL_CONFIG_DIR"] = _settings.name
