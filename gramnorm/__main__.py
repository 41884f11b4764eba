"""Run the command line by ``python -m gramnorm``."""

import sys

from gramnorm.report.cli import main

if __name__ == "__main__":
    sys.exit(main())
