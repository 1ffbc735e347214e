"""Experiments as runnable units, each of one or several training runs and a page."""
