"""Nothing of a text steers the terminal that it is shown on."""

from hypothesis import given
from hypothesis import strategies as st

from fastclaw.printable import printable


@given(st.text())
def test_it_is_printable_and_as_long(text: str) -> None:
    told = printable(text)
    assert told.isprintable()
    assert len(told) == len(text)
    assert all(shown in (letter, "\ufffd") for shown, letter in zip(told, text, strict=True))


def test_what_can_be_printed_stays() -> None:
    assert printable("a é 名\x1b[2J\n") == "a é 名\ufffd[2J\ufffd"
