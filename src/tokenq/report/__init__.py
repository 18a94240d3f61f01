"""Reports: scored responses as a page, in the terminal. Input is the records of `tokenq.credit`."""

from tokenq.report.html import PageHead, single_page, write_page

__all__ = ["PageHead", "single_page", "write_page"]
