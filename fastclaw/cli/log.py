"""Logs: one line per event on stderr, as text or JSON. A traceback is one line too."""

import logging
import sys
from typing import Any, Literal

import orjson

Format = Literal["text", "json"]


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(_printable(entry), default=str).decode()


def _printable(entry: dict[str, Any]) -> dict[str, Any]:
    """Bytes of a path that are no UTF-8 are lone surrogates in a str, for which JSON has no form."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in entry.items()
    }


def configure(form: Format, level: str = "INFO") -> None:
    """Send all logging of this process to stderr.

    Parameters:
        form: `text` for people, `json` for machines.
        level: a level's name, as in logging.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = _TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
