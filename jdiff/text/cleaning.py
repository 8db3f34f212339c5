"""Cleaning a prompt before it is encoded: not at all, to lower case, or as captions from the web are cleaned."""

import html
import re
import urllib.parse
import warnings
from collections.abc import Callable, Iterable

# (regular expression, replacement)
Rule = tuple[str, str]


def none(prompt: str) -> str:
    """Returns the prompt as it is."""
    return prompt


def lower(prompt: str) -> str:
    """Returns the prompt in lower case, without space around it.

    Example:
        >>> lower("  A Red Three ")
        'a red three'

    Reference:
        diffusers' `IFPipeline.encode_prompt`, by default.
    """
    return prompt.lower().strip()


def _address(scheme: str) -> Rule:
    """Returns a rule that removes the scheme of web addresses, and host names of eight domains with their paths."""
    name = r"[a-z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
    return rf"\b(?:{scheme}:(?:/{{1,3}}|[a-z0-9%])|{name})", ""


DASHES = r"\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
DASHES += r"\ufe31\ufe32\ufe58\ufe63\uff0d"
FILES = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"

ADDRESSES: tuple[Rule, ...] = (("<person>", "person"), _address("https?"), _address("www"))
SIGNS: tuple[Rule, ...] = (
    (r"@\w+\b", ""),  # @nick
    (r"[\u31c0-\u9fff]+", ""),  # CJK strokes to ideographs
    (f"[{DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # 1:23 at the end
    (r"\\n", " "),  # the two characters
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{FILES}", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
WORDS: tuple[Rule, ...] = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{FILES}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # 1024x768; the second of the three is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def _apply(rules: Iterable[Rule], prompt: str) -> str:
    for pattern, replacement in rules:
        prompt = re.sub(pattern, replacement, prompt)
    return prompt


def _once(prompt: str) -> str:
    try:
        import bs4
        import ftfy
    except ImportError as error:
        raise ValueError(
            f"the cleaning 'caption' needs {error.name}: pip install beautifulsoup4 ftfy, or use 'lower' or 'none'"
        ) from error
    prompt = _apply(ADDRESSES, urllib.parse.unquote_plus(prompt).strip().lower())
    with warnings.catch_warnings():  # it warns where a prompt looks like the name of a file
        warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)
        try:
            prompt = bs4.BeautifulSoup(prompt, features="html.parser").text
        except bs4.ParserRejectedMarkup as error:
            raise ValueError(
                f"the cleaning 'caption' needs a prompt that HTML allows, got {prompt!r}; use 'lower' or 'none'"
            ) from error
    prompt = _apply(SIGNS, prompt)
    if len(re.findall("[-_]", prompt)) > 3:  # this-is-my-cute-cat
        prompt = re.sub("[-_]", " ", prompt)
    prompt = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return _apply(WORDS, prompt).strip()


def caption(prompt: str) -> str:
    """Returns the prompt in lower case, without addresses, markup, nicknames, ids, file names and Chinese characters.

    It is cleaned twice, as deep-floyd does.

    Raises:
        ValueError: ftfy or beautifulsoup4 (the extra `text`) is not installed, or an HTML parser rejects the prompt.

    Example:
        >>> caption("A <b>Red</b> Three, 1024x768!! http://a.com/x @nick")
        'a red three, !!'

    Reference:
        diffusers' `IFPipeline.__call__`, whose `clean_caption` is on by default.
    """
    return _once(_once(prompt))


CLEANING: dict[str, Callable[[str], str]] = {"none": none, "lower": lower, "caption": caption}
