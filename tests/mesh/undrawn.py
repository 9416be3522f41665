"""The command line without pictures: `python -m tests.mesh.undrawn train ...`."""

from bpfree.cli import main
from tests.helpers import without_pictures

if __name__ == "__main__":
    with without_pictures():
        main()
