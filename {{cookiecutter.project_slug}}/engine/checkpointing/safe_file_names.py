"""Whether a file name that came from elsewhere is safe to write, on whatever system."""

import re
import unicodedata

_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of letters, ends of lines


def unsafe_reason(name: str) -> str:
    """Why no file of that name is written below a folder, on whatever system, or ""."""
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "it leads elsewhere"
        if "\\" in part or re.match("[A-Za-z]:", part) or {unicodedata.category(one) for one in part} & _UNSEEN:
            return "it holds a letter that is not for names"
        if part[-1] in ". " or _DEVICES.fullmatch(part):
            return "Windows has no such name"
        if len(part.encode("utf-8", "surrogatepass")) > 255:
            return "it is too long"
    return ""
