"""UsageError, the one-line error of a wrong command line, and the "did you mean" suggestion."""

from collections.abc import Iterable


class UsageError(Exception):
    """A mistake on the command line or in a file that it names; printed in one line, with exit status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion to append to an error, such as `; did you mean 'lenet'?`, or "" where nothing is close."""
    import difflib  # only mistakes pay for it

    simplified = {simplify(one): one for one in known}
    close = difflib.get_close_matches(simplify(name), simplified, n=1, cutoff=0.6)
    return f"; did you mean {simplified[close[0]]!r}?" if close else ""


def simplify(name: str) -> str:
    """A name without case and underscores: MyNet and my_net are the same."""
    return name.replace("_", "").lower()
