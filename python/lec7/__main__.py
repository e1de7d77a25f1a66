import sys

from lec7.cli import main

sys.exit(main())
