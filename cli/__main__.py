"""`python -m dinov2kit.cli` is `dinokit`."""

from .app import main

main()
