"""The front door: the command line that leads into the rooms."""

__version__ = "0.1.0"
