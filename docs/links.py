"""What mkdocs does to a page before it reads it: links to files outside docs/ become their names.

On a code host such a link leads to the file; the site has no such pages.
"""

import re

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]*)\)")


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """The page with links such as ../bench/toeplitz.py, or ../ from docs/, as plain text in code style."""
    depth = page.file.src_uri.count("/")

    def plain(link: re.Match) -> str:
        up = len(re.match(r"(\.\./)*", link[2])[0]) // 3  # pyright: ignore[reportOptionalSubscript]
        return link[0] if up <= depth else f"`{link[1]}`"

    return _OUTSIDE.sub(plain, markdown)
