"""Blind human comparison in a browser: web server, database and statistics of the answers."""
