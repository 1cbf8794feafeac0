"""The command line `dinokit`: reads options, calls one library verb, prints."""

from .app import app, main

__all__ = ["app", "main"]
