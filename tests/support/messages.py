"""Errors by what they say."""

import re


def says(text: str) -> str:
    """The pattern, for `pytest.raises(match=...)`, of a message that holds the text; "..." stands for anything."""
    return "(?s)" + re.escape(text).replace(r"\.\.\.", ".*")
