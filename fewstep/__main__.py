"""`python -m fewstep`."""

from .cli import main

raise SystemExit(main())
