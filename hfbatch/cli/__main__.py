"""`python -m hfbatch.cli` is the `hfbatch` command."""

from hfbatch.cli import main

main()
