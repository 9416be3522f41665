"""The optional packages of the service."""

from importlib.util import find_spec

from bpfree.errors import UserError

_PACKAGES = {  # the module to import, and the package that has it
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
}


def require_packages() -> None:
    """Raise UserError unless all packages of the extra `serve` are installed."""
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise UserError(
                f"serve: needs the package {package}, which is not installed. Install it: pip install 'bpfree[serve]'"
            )
