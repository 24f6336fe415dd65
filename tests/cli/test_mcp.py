"""`fastclaw mcp` on the command line; what its client sees is in tests/adapters/mcp."""

import sys

import pytest

from tests.cli.programs import assert_one_line, fastclaw

WITHOUT_SDK = """
import sys
sys.modules["mcp"] = None
from fastclaw.cli.main import main
sys.argv[0] = "fastclaw"
main()
"""


def test_without_the_sdk_it_says_what_to_install() -> None:
    done = fastclaw("mcp", command=[sys.executable, "-c", WITHOUT_SDK])
    assert (done.returncode, done.stdout) == (1, b"")
    assert "pip install 'PATH[mcp]'" in assert_one_line(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "much"), "2g"),
        (("--lifetime", "long"), "8h"),
        (("--lifetime", "-1"), "from 0 on"),
        (("--runtime", "vm"), "--runtime"),
        (("-o", "imagee=x"), "image"),
        (("--memory", "1"), "memory_bytes"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(arguments: tuple[str, ...], said: str) -> None:
    done = fastclaw("mcp", *arguments)
    assert done.returncode != 0
    assert done.stdout == b""
    assert said in assert_one_line(done.stderr)
