"""The report of a study: what was searched, what won and why, as one HTML page, Markdown, pictures and tables."""
