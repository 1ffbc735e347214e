"""A page's tags, for tests that count them, and the limit of its size."""

from html.parser import HTMLParser

HOSTILE = '<img src=x onerror=alert(1)><script>alert("2")</script>\' & ${`'
LIMIT = 5_000_000


class Tags(HTMLParser):
    """All start tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.found)

    def harmless(self) -> bool:
        """One script, no handler in any tag, nothing fetched from elsewhere."""
        named = [(name, value or "") for _, attrs in self.found for name, value in attrs.items()]
        addresses = [value for name, value in named if name in ("src", "href", "srcset", "data")]
        own = all(
            not each or each.startswith(("data:", "#")) or each.endswith("/report.html")
            for each in addresses
        )
        handlers = [name for name, _ in named if name.startswith("on")]
        remote = "url(" in self.html or "@import" in self.html
        return (
            self.count("script") == self.html.count("<script") == 1
            and own
            and not (handlers or remote)
            and "default-src 'none'" in self.html
        )
