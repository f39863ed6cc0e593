"""Web pages for reports: one file without scripts that loads nothing from elsewhere."""

import base64
import html
import io
import pathlib

import numpy as np
from PIL import Image

from vfnet_tf.files import write_file
from vfnet_tf.foreign_text import terminal_text
from vfnet_tf.reports.curves import save_figure

# Readable in light and dark, on paper and on a phone; system fonts only.
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2378e1; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 0 auto;
       padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h3 { font-size: 1rem; margin: 1.6rem 0 .2rem; }
h2 { font-size: 1.2rem;
     margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
p.note { opacity: .75; max-width: 75ch; }
nav a { margin-right: 1rem; color: var(--accent); }
p { overflow-wrap: anywhere; } nav { line-height: 1.9; }
nav a { display: inline-block; }
.scroll { overflow-x: auto; margin: 0 0 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line);
         text-align: right; }
th:first-child, td:first-child, .text { text-align: left; }
tr:hover td { background: var(--soft); }
figure { margin: 0; } figcaption { font-size: .85rem; opacity: .8; }
.gallery { display: grid; gap: 1rem;
           grid-template-columns: repeat(auto-fill, minmax(min(var(--width), 100%), 1fr)); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
"""


class WebPage:
    """A page of sections, written as one file.

    Texts are escaped, except for the results of the `*_html` functions of this module.

    Args:
        title: str.
        subtitle: str, a line under the title.
    """

    def __init__(self, title, subtitle=""):
        self.title = title
        self.subtitle = subtitle
        self.sections = []

    def add(self, heading, *parts, note=""):
        """Adds a section.

        Args:
            heading: str.
            *parts: str, html of `table_html`, `figure_html`, `image_html`,
                `gallery_html`, `subheading_html`.
            note: str, explanation below the heading.
        """
        self.sections.append((heading, note, parts))

    def html(self):
        """The whole page, str."""
        text = _escape
        names = [heading for heading, _, _ in self.sections]
        links = "".join(
            f'<a href="#s{number}">{text(name)}</a>'
            for number, name in enumerate(names)
        )
        body = "".join(
            f'<section id="s{number}"><h2>{text(heading)}</h2>'
            + (f'<p class="note">{text(note)}</p>' if note else "")
            + "".join(parts)
            + "</section>\n"
            for number, (heading, note, parts) in enumerate(self.sections)
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{text(self.title)}</title><style>{_STYLE}</style></head><body>"
            f"<h1>{text(self.title)}</h1><p>{text(self.subtitle)}</p>"
            f"<nav>{links}</nav>\n{body}</body></html>\n"
        )

    def save(self, path):
        """Writes the page whole or not at all; returns the path, a `pathlib.Path`."""
        path = pathlib.Path(path)
        write_file(path, self.html())
        return path


def table_html(header, rows):
    """A table; the first column is the row's name.

    Args:
        header: sequence of str.
        rows: sequence of sequences; floats show three decimals, NaN and None a dash.
            Numbers stand to the right, also those in a text such as `"+0.8 %"`.
    """
    rows = [list(map(cell_text, row)) for row in rows]
    # One cell with a word makes a column of words; a dash is no word.
    kinds = [
        ' class="text"' if any(cell[:1].isalpha() for cell in column) else ""
        for column in zip(*rows, strict=True)
    ] or [""] * len(header)
    head, *body = (
        "".join(
            f"<{tag}{kind}>{_escape(cell)}</{tag}>"
            for kind, cell in zip(kinds, row, strict=True)
        )
        for tag, row in (("th", list(map(str, header))), *(("td", row) for row in rows))
    )
    body = "".join(f"<tr>{row}</tr>" for row in body)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure_html(figure, caption=""):
    """A matplotlib figure as an SVG image.

    Args:
        figure: `matplotlib.figure.Figure`.
        caption: str.
    """
    import matplotlib

    stream = io.BytesIO()
    # No date and no random ids, so that the same figure gives equal bytes.
    with matplotlib.rc_context({"svg.hashsalt": "vfnet_tf"}):
        save_figure(
            figure, stream, format="svg", bbox_inches="tight", metadata={"Date": None}
        )
    return _figure("image/svg+xml", stream.getvalue(), caption)


def image_html(pixels, caption="", max_side=480):
    """A picture as a JPEG image.

    Args:
        pixels: uint8 `[h, w, 3]` RGB.
        caption: str.
        max_side: int, largest longer side in pixels; larger pictures are reduced.
    """
    image = Image.fromarray(np.asarray(pixels, "uint8"))
    image.thumbnail((max_side, max_side))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return _figure("image/jpeg", stream.getvalue(), caption)


def gallery_html(images, min_width=240):
    """Pictures side by side.

    Args:
        images: sequence of str of `image_html` or `figure_html`.
        min_width: int, smallest width of each on the screen in pixels.
    """
    style = f'style="--width: {int(min_width)}px"'
    return f'<div class="gallery" {style}>{"".join(images)}</div>'


def subheading_html(text, note=""):
    """A heading within a section, with an explanation `note` below it."""
    note = f'<p class="note">{_escape(note)}</p>' if note else ""
    return f"<h3>{_escape(text)}</h3>{note}"


def _escape(text):
    return html.escape(terminal_text(text))


def _figure(kind, content, caption):
    source = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    caption = _escape(caption)
    return (
        f'<figure><img src="{source}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def cell_text(value):
    """A value of a table as text, see `table_html`."""
    if value is None or (isinstance(value, float | np.floating) and value != value):
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.3f}"
    return str(value)
