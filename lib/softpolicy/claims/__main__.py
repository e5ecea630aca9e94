"""Prints the table of claims: `python -m softpolicy.claims`."""

import sys

from softpolicy import runs
from softpolicy.claims import claims_table

if __name__ == "__main__":
    try:
        print(claims_table())
    except runs.RunError as e:
        sys.exit(f"{e}")
