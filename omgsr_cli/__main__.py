"""`python -m omgsr_cli` is `omgsr`."""

from omgsr_cli.cli.app import main

main()
