"""Text that comes from outside, for a terminal or a log."""


def safe(text: str) -> str:
    """The text with everything that could move a cursor, turn the direction of writing or forge a line made visible."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
