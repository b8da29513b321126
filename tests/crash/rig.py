"""Shared by the scripts here: their common flags, and the count of checks (../checks.py)."""
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from checks import Checks, Failure, expect, expect_that  # noqa: E402, F401
from ports import free_port  # noqa: E402, F401


def parsed(parser):
    """The arguments, with `--binary` and `--seed`, which every script has; the seed is printed, to replay by."""
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/wxrelay")
    arguments = parser.parse_args()
    arguments.binary = arguments.binary.resolve()
    if not arguments.binary.is_file():
        sys.exit(f"{arguments.binary} is not there; build it with `cargo build --release`")
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(10**6)
    print(f"seed {arguments.seed}", flush=True)
    return arguments
