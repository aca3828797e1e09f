"""One self-contained HTML page from results folders; the entry is ``eval.page.write.write_page``."""
