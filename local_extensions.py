"""Jinja filters for the answers: `checked` refuses bad ones before anything is written, `quoted` puts one in quotes.

cookiecutter looks for a template's own filters in a file of this name.
"""

import importlib.util
import json
import keyword
import re
import sys
from pathlib import Path
from typing import Any

from cookiecutter.exceptions import FailedHookException
from jinja2 import Environment
from jinja2.ext import Extension

# The names inside a project and of what it is built on: a folder of that name would hide them from an import.
_TAKEN = {"data", "model", "engine", "main", "tests", "torch", "torchvision", "pytorch_lightning", "lightning"}
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
_FREE_TEXT = ("project_name", "description", "author_name", "author_email")
_MAX_SLUG, _MAX_TEXT = 50, 200
_FOLDER = "{{cookiecutter.project_slug}}"


class Answers(Extension):
    """Adds the filters to the template's Jinja environment."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters["checked"] = checked
        environment.filters["quoted"] = quoted
        environment.globals["template_dir"] = str(Path(__file__).resolve().parent)

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Has the answers checked when the name of the project's folder is rendered: before anything is written.

        A variable of cookiecutter.json that did it could be given another value by whoever answers.
        """
        return "{{ cookiecutter | checked }}" + source if source == _FOLDER else source


def checked(answers: dict[str, Any]) -> str:
    """Nothing, if all answers are good.

    Raises:
        FailedHookException: one is not; cookiecutter prints its line and exits with status 1.
    """
    wrong = _wrong_slug(str(answers["project_slug"]))
    for name in _FREE_TEXT:
        text = str(answers[name])
        if len(text) > _MAX_TEXT or not text.isprintable():
            wrong = wrong or f"{name}: at most {_MAX_TEXT} printable letters in one line, not {text[:60]!r}"
    email = str(answers["author_email"])
    if email and not re.fullmatch(r"[^@\s<>]+@[^@\s<>]+", email):
        wrong = wrong or f"author_email: {email!r} is no email address (it may be empty)"
    if not str(answers["project_name"]).strip():
        wrong = wrong or "project_name: it is empty"
    if wrong:
        raise FailedHookException(f"Error: {wrong}")
    return ""


def _wrong_slug(slug: str) -> str:
    rule = f"it should be 1 to {_MAX_SLUG} of a-z, A-Z, 0-9, - and _, with a letter first"
    if not re.fullmatch(rf"[A-Za-z][A-Za-z0-9_-]{{0,{_MAX_SLUG - 1}}}", slug):
        return f"project_slug: {slug[:60]!r} cannot be the folder's name; {rule}"
    if keyword.iskeyword(slug) or keyword.issoftkeyword(slug) or slug.lower() in _RESERVED:
        return f"project_slug: {slug!r} is a reserved word; choose another name"
    if slug in _TAKEN or slug in sys.stdlib_module_names or _installed(slug):
        return f"project_slug: {slug!r} is the name of a Python module, which it would hide; choose another name"
    return ""


def _installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a mere folder in reach has no origin


def quoted(text: str) -> str:
    """The inside of a double-quoted string, for TOML: quotes, backslashes, Chinese and emoji come out right."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
