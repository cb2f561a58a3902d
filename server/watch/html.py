"""HTML is built here so that no text can break out of it: text is escaped unless this module made it."""

from __future__ import annotations

import html

from fedcompress.formatting import escaped


class Html(str):
    """Marks text that is HTML already. Only this module makes it."""


def escape_html(text: object) -> Html:
    """Convert any text to HTML.

    What is not printable, such as a mark that turns the direction of writing, is spelled out.
    """
    return text if isinstance(text, Html) else Html(html.escape(escaped(str(text))))


def join_html(*children: object) -> Html:
    """Join children, texts or HTML, one after another."""
    return Html("".join(escape_html(child) for child in children))


def element(name: str, *children: object, **attributes: object) -> Html:
    """Build an element.

    Args:
        name: of the element.
        children: texts or HTML.
        attributes: ``class_`` stands for ``class``, ``stroke_width`` for ``stroke-width``; None leaves one out.

    Returns:
        The element with all that it contains.

    Examples:
        >>> element("td", "<b>", class_="number")
        '<td class="number">&lt;b&gt;</td>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape_html(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{join_html(*children)}</{name}>")
