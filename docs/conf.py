"""Settings of the documentation site: ``make docs`` builds it from this folder with Sphinx."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

# The tutorial trains small models in a process of its own, which inherits these.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = str(HERE.parent)

import tessella  # noqa: E402

project = "Tessella"
author = "The Tessella authors"
copyright = "The Tessella authors"
version = release = tessella.__version__

extensions = [
    "myst_nb",  # Markdown, and pages whose code runs while the site is built
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "program_reference",
]
exclude_patterns = ["_extensions"]
root_doc = "index"

# Markdown.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type"]

# The tutorial: run at every build, in a folder that is thrown away; an error ends the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_output_stderr = "remove"  # progress bars

# The Python interface, from docstrings in Google's style, which hold reStructuredText.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Docstrings also mention what is no part of the public interface; such names stay plain text.
# Everything else that refers to something must find it.
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]

# A link to a file of the repository that is no page becomes a download.
linkcheck_anchors = False
linkcheck_timeout = 30
linkcheck_retries = 2

# "$" and ">>>" are not part of what a reader copies.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "Tessella"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}


def without_unpack(*event: Any) -> tuple[str | None, str | None]:
    """The signature of a function, whose further keywords have the names that its text gives."""
    *_, signature, returns = event
    if signature is not None:
        signature = re.sub(r": Unpack\[[^]]*\]", "", signature)
    return signature, returns


def setup(app: Any) -> None:
    """Have signatures read well."""
    app.connect("autodoc-process-signature", without_unpack)
