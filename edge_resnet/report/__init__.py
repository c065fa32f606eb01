"""report.json and what people read: HTML, Markdown, and the table on the terminal."""
