"""Names that others have chosen, shown without what a terminal would obey."""


def is_utf8(name: str) -> bool:
    """Returns whether the name of a file is text; Python marks each byte of another one by half of a surrogate pair."""
    return not any("\ud800" <= x <= "\udfff" for x in name)


def printable(text: str, keep: str = "") -> str:
    r"""Returns text with escapes for control characters, invisible ones and bytes that are no UTF-8: "\x1b", "\udcff".

    Characters in `keep` stay as they are.
    """
    return "".join(x if x.isprintable() or x in keep else ascii(x)[1:-1] for x in text)
