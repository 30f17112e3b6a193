"""The report of a study: one page that needs no network, and its pictures."""

from levit_search.report.contents import contents
from levit_search.report.page import report_of_run, write_report

__all__ = ["contents", "report_of_run", "write_report"]
