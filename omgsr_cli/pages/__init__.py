"""The common parts of HTML reports: style, templates and embedded images."""
