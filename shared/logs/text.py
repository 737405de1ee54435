"""Text that comes from outside, for a terminal or a log."""


def is_utf8(text: str) -> bool:
    """False if it came from bytes that are not UTF-8: Python has them as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def safe(text: str) -> str:
    """The text, with visible escapes for all that could move a cursor, reverse the writing or forge a line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
