"""A model card as a self-contained page, and as a section for another page."""

from html import escape

from adapt.profiling.text import HEAD, Card, cells, summary

_STYLE = """
.adapt-card { font: 14px/1.4 system-ui, sans-serif; max-width: 75em; margin: 1em auto; }
.adapt-card table { border-collapse: collapse; width: 100%; }
.adapt-card th, .adapt-card td { padding: .2em .6em; text-align: right; border-bottom: 1px solid #8884; }
.adapt-card th:nth-child(-n+2), .adapt-card td:nth-child(-n+2) { text-align: left; }
.adapt-card dl { display: grid; grid-template-columns: max-content auto; gap: .2em 1em; }
.adapt-card dt { font-weight: 600; }
.adapt-card dd { margin: 0; }
.adapt-card .share { background: linear-gradient(90deg, #4a7bd055 var(--share), transparent var(--share)); }
"""


def as_html(card: Card) -> str:
    """Return a self-contained page."""
    title = escape(f"{card['network']} on {card['machine']}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body>\n{fragment(card)}\n</body>\n</html>"
    )


def fragment(card: Card) -> str:
    """Return a section for another page, with its style."""
    figures = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in summary(card).items())
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in HEAD)
    rows = "\n".join(f"<tr>{_row(row)}</tr>" for row in card["layers"])
    return (
        f'<section class="adapt-card">\n<style>{_STYLE}</style>\n'
        f"<h2>{escape(card['network'])} on {escape(card['machine'])}, batch {card['batch_size']}, modelled</h2>\n"
        f"<dl>{figures}</dl>\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</section>"
    )


def _row(row: Card) -> str:
    share = f' class="share" style="--share: {100 * (row["cost_share"] or 0):.1f}%"'
    return "".join(
        f"<td{share if name == 'cost' else ''}>{escape(text)}</td>" for name, text in zip(HEAD, cells(row), strict=True)
    )
