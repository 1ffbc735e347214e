"""The page of all runs of a folder: live curves, start, stop and resume."""
