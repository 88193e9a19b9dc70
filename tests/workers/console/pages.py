"""A page read as a browser reads it: elements, attributes, links; and what no page of ours may hold."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """The elements of a page with their attributes, its links and its text; raises if elements do not close."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in {"td", "th", "dt", "dd", "p", "li", "small"}:
            self.text += " "
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        opened = self._open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def links(self) -> list[str]:
        return [attributes["href"] or "" for attributes in self.all("a")]

    def check(self) -> None:
        """Assert that it is made of our own elements alone, loads nothing from elsewhere and runs nothing inline."""
        for tag, attributes in self.elements:
            assert tag not in {"img", "iframe", "object", "embed", "base", "style"}, tag
            assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
            for name in ("href", "src", "action"):
                value = attributes.get(name)
                assert value is None or value[:1] in ("/", "#"), (tag, value)
                assert value is None or value[:2] != "//", (tag, value)
        for attributes in self.all("script"):
            assert (attributes["src"] or "").startswith("/static/htmx-")
        labelled = {attributes.get("aria-labelledby") for _, attributes in self.elements} - {None}
        ids = [attributes["id"] for _, attributes in self.elements if attributes.get("id")]
        assert labelled <= set(ids)
        assert len(ids) == len(set(ids)), "two elements with one id"
        for tag in ("main", "h1"):
            assert len(self.all(tag)) == 1, tag
        for attributes in self.all("svg"):
            assert attributes.get("aria-hidden") or attributes.get("aria-label"), "a picture that says nothing"
