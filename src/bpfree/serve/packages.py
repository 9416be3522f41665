"""The optional packages of the service."""

from bpfree.spec.extras import library

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def require_packages() -> None:
    """Raise UserError unless all packages of the extra `serve` are installed."""
    for package in _PACKAGES:
        library(package, "serve", "serve")
