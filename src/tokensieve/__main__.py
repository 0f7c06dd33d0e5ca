"""``python -m tokensieve``."""

from tokensieve.cli.app import main

main()
