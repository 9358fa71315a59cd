"""For griffe, which reads docstrings: an entry "W, V: the weights" stands for one of W and one of V."""

import re

import griffe

ENTRY = re.compile(r"^  (\w+(?:, \w+)+): (.*(?:\n    .*)*)", flags=re.MULTILINE)


class SharedEntries(griffe.Extension):
    """Entries apart, so that each name is looked up, and an unknown one is a warning."""

    def on_instance(self, *, obj, **_):
        """Called with every object that was read."""
        if obj.docstring:
            obj.docstring.value = ENTRY.sub(
                lambda entry: "\n".join(f"  {name}: {entry[2]}" for name in entry[1].split(", ")), obj.docstring.value
            )
