"""What others have said, for a terminal. Pure."""


def printable(text: str) -> str:
    """A text that moves nobody's cursor: what cannot be printed is U+FFFD."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
