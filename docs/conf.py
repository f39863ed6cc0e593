"""Settings of the site: `make docs` builds it with Sphinx into site/.

Nothing is loaded from elsewhere, neither by the build nor by the pages.
"""

import inspect
import os
import re

# Before anything imports TensorFlow, whose notes would pass for warnings of the build.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import vfnet_tf

project = "vfnet_tf"
author = "The vfnet_tf authors"
copyright = f"2026, {author}"
release = vfnet_tf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"vfnet_tf {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

# Links to headings, as `results.md#speed`, are checked.
myst_heading_anchors = 4

# Docstrings quote code by single backticks; what is documented becomes a link.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
# Keras's own docstrings are no reStructuredText, and no part of this reference.
autodoc_inherit_docstrings = False
napoleon_use_ivar = True
# Attributes of one name in two classes: not worth a link.
suppress_warnings = ["ref.python"]


def _use_own_signature(app, what, name, obj, options, signature, annotation):
    """The arguments of `__init__`: Keras hides them behind `(*args, **kwargs)`."""
    if what == "class" and signature == "(*args, **kwargs)":
        parameters = inspect.signature(obj.__init__).parameters.values()
        signature = str(inspect.Signature(list(parameters)[1:]))
    return signature, annotation


def _as_restructured_text(app, what, name, obj, options, lines):
    """What these docstrings write otherwise than Sphinx reads it."""
    text = "\n".join(lines)
    # Names of arguments that take two lines, and those that start with stars.
    text = re.sub(r"^(    \w[\w, ]*,)\n +(?=\w[\w, ]*: )", r"\1 ", text, flags=re.M)
    text = text.replace("    *args, **kwargs:", r"    \*args, \*\*kwargs:")
    # Plurals: `Row`s.
    text = re.sub(r"(`[^`]+`)(\w?)", _end_role, text)
    lines[:] = _keep_layout(text.split("\n"))


def _end_role(match):
    return rf"{match[1]}\ {match[2]}" if match[2] else match[1]


def _keep_layout(lines):
    """Makes literal blocks of formulas, which are indented, and of tables."""
    result, is_kept, before = [], False, ""
    for line in lines:
        if line:
            is_special = line.startswith(("    ", "|"))
            # Below a line such as `Args:` a section goes on.
            is_section = before.startswith(" ") or re.match(r"\w+:$", before)
            if not is_special:
                is_kept = False
            elif not is_kept and not is_section and result and not result[-1]:
                result += ["::", ""]
                is_kept = True
            before = line
        result.append(f"    {line}" if is_kept and line else line)
    return result


def setup(app):
    """Connects the two, before napoleon reads the sections."""
    app.connect("autodoc-process-signature", _use_own_signature)
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)
