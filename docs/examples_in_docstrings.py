"""Shows the examples in docstrings as code: mkdocstrings knows the heading "Examples" alone."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Reads `Example:` as `Examples:`."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Change the heading, in the copy of the docstring that is shown."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
