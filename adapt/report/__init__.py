"""Show runs as tables, pictures, and one self-contained page."""

from adapt.report.pictures import save_pictures
from adapt.report.summary import summary, totals
from adapt.report.text import table

__all__ = ["save_pictures", "summary", "table", "totals"]
