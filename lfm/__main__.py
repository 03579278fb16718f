"""``python -m lfm`` is ``lfm``."""

from lfm.cli.main import main

main()
