"""Run the notebooks of this folder and store their outputs in them.

    python examples/fill.py                 # all notebooks
    python examples/fill.py noprop          # one

It needs `pip install bpfree[notebooks]`. The outputs hold no path of the machine and no time of execution.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def main() -> None:
    """Fill the notebooks that the command line names, or all."""
    os.environ["OMP_NUM_THREADS"] = "1"  # another number of threads changes the last digits
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.stem in sys.argv[1:] or not sys.argv[1:]:
            fill(path)


def fill(path: Path) -> None:
    """Run one notebook in an empty folder, and write it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as place:
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=None, resources={"metadata": {"path": place}}, record_timing=False
        )
        client.execute()
    # The versions of the machine that ran it; the stored file says only that it is Python.
    notebook.metadata["language_info"] = {"name": "python"}
    refuse_paths(notebook, path)
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def refuse_paths(notebook: nbformat.NotebookNode, path: Path) -> None:
    """End the program if an output holds a path of this machine."""
    for cell in notebook.cells:
        text = str(cell.get("outputs", ""))
        for place in (str(Path.home()), str(FOLDER.resolve().parent), tempfile.gettempdir(), sys.prefix):
            if len(place) > 1 and place in text:
                raise SystemExit(f"{path.name}: an output holds the path {place}")


if __name__ == "__main__":
    main()
