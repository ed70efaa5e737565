"""`python -m tilelang`."""
import sys

from tilelang.cli import main

sys.exit(main())
