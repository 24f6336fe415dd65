"""The bounds of what is said: answers, and what is kept for them. Kept to as those of limits.py are."""

from fastclaw.limits import KIB

SHOWN_COMMAND_BYTES = 4 * KIB
"""Of a command line, what `list` shows and a record keeps: 10 000 records of long ones take 40 MB, not gigabytes."""

WORD_BYTES = 50
"""What each word of it costs besides its text: what Python keeps around a string (sys.getsizeof(""))."""
