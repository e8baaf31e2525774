"""`python -m uxnet`."""

import sys

from uxnet.cli.main import main

sys.exit(main())
