"""One self-contained HTML file of tables, text and pictures, for reports and previews."""

import base64
import html
from pathlib import Path

_STYLE = "body{font-family:sans-serif}table{border-collapse:collapse}td,th{padding:4px}img{max-width:100%}"


def page(title: str, parts: list[str]) -> bytes:
    """The file, of pieces of HTML one below the other."""
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return "\n".join([head, *parts]).encode()


def picture(path: Path) -> str:
    """A PNG file as a piece of a page, called like the file."""
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem)
    return f'<figure><img src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'
