"""For mkdocs: formulas in pages and docstrings are plain text, as GitHub reads them.

<x_i, W_j> is an inner product and no HTML, ||W||_F has an index and W*_j a star, which begin no emphasis.
"""

import markdown
from pymdownx.delimiterprocessor import Delimiter, DelimiterProcessor


class PlainFormulas(markdown.Extension):
    """No HTML among the Markdown; emphasis by stars alone, which words hold on to."""

    def extendMarkdown(self, md):  # noqa: N802
        """What mkdocs and mkdocstrings do with every text."""
        md.preprocessors.deregister("html_block")
        for pattern in ("html", "entity", "em_strong"):
            md.inlinePatterns.deregister(pattern)
        md.inlinePatterns.register(DelimiterProcessor(Delimiter("*", "strong,em", smart=True), md), "delimiter", 60)


def on_config(config):
    """The extension, for pages and docstrings."""
    config.markdown_extensions.append(PlainFormulas())
    return config
