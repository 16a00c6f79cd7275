"""How every page is made: templates, embedded pictures, and how a number, a count and a term are written.

A page is one file: pictures are embedded, nothing is loaded from anywhere, and every text is HTML-escaped
by the template engine. Undefined values are a dash, never a number.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from ctseg.reporting import glossary

TEMPLATES = Path(__file__).with_name("templates")
DASH = "–"
PNG_COLOURS = 128


def template(name: str) -> jinja2.Template:
    """A page's template. Every page extends `page.html.j2` and shares `page.css`; its texts are HTML-escaped,
    those of a .txt.j2 are not.

    Numbers come as they are; the functions below, which are filters there, write them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(disabled_extensions=["txt.j2"], default=True),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for how in (
        breakable,
        commands,
        count_text,
        data_uri,
        interval_text,
        minus,
        p_text,
        plural,
        short_hash,
        signed,
        term,
        text_of,
    ):
        environment.filters[how.__name__] = how
    return environment.get_template(name)


def breakable(name: str) -> Markup:
    """A name that may go on in the next line behind each underscore, instead of anywhere."""
    return Markup("_<wbr>").join(name.split("_"))


def commands(line: str) -> Markup:
    """The line, escaped, with what stands between backticks set as code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(line))))


def term(text: str, name: str | None = None) -> Markup:
    """`text` as a link to the glossary's line on `name` (default: `text` itself), which also shows when
    pointed at. KeyError for an unknown one.
    """
    found = glossary.find(name or text)
    return Markup('<a class="term" href="#{}" title="{}">{}</a>').format(found.anchor, found.line, text)


def data_uri(content: bytes, kind: str) -> str:
    """An image as the text that a page can carry."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def slim(content: bytes) -> bytes:
    """A PNG of a plot with at most 128 colours, a third of its size to the same eye; as it was where that is
    smaller. OSError for what is no picture.
    """
    stream = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").quantize(PNG_COLOURS, dither=Image.Dither.NONE).save(
            stream, format="PNG", optimize=True
        )
    return min(content, stream.getvalue(), key=len)


def text_of(value: object, form: str = "{:.3f}") -> str:
    """A number by `form`, a dash for None and anything that is no number."""
    return form.format(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else DASH


def interval_text(interval: Sequence[float] | None, flags: Sequence[str] = (), form: str = "{:.2f}") -> str:
    """ "0.80 to 0.88", a star behind an interval of too few patients; empty where there is no interval."""
    if not interval:
        return ""
    return " to ".join(form.format(limit) for limit in interval) + "*" * ("optimistic_ci" in flags)


def signed(value: float | None, metric: str = "dice") -> str:
    """A difference with its sign and unit, for example "-2.10 mm" or "+0.012"."""
    return text_of(value, "{:+.2f} mm" if metric == "hd95_mm" else "{:+.3f}")


def p_text(p: float | None) -> str:
    """What stands behind "p": "= 0.012" or "< 0.001"; a dash where there was no test."""
    return DASH if p is None else "< 0.001" if p < 0.001 else f"= {p:.2g}"


def count_text(value: int | None) -> str:
    """Parameters as "2.77 M" or "850 k"."""
    if value is None:
        return DASH
    return (
        f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k" if value >= 1e4 else f"{value:,}"
    )


def short_hash(value: object, missing: str = DASH) -> str:
    """The first twelve digits of a hash, which is enough to tell two apart."""
    return str(value)[:12] if value else missing


def minus(text: str) -> str:
    """The text with real minus signs."""
    return text.replace("-", "−")


def plural(count: int, word: str) -> str:
    """ "1 case", "2 cases"."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def listed(names: Sequence[str], most: int = 6) -> str:
    """ "a, b and c"; beyond `most` the rest is counted."""
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
