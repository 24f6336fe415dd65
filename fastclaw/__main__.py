"""`python -m fastclaw`."""

from fastclaw.cli.main import main

main()
