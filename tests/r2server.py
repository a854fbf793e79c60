"""A server that behaves as R2 does where the other test servers do not; its objects stay in a folder.

`python tests/r2server.py --folder F --port P [--bucket NAME] [--rate]`, with any key pair; it ends with a
signal. In tests: `tests.servers.r2_server`. What it imitates: `tests/r2/operations.py`; what can go wrong:
`tests/r2/faults.py`. Its own questions are below `/_r2/`: `log`, `faults`, `options`.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    from tests.r2.serving import main

    main()
