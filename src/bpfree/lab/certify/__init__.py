"""A locality certificate for any rule on any net."""

from bpfree.lab.certify.certificate import Certificate, Differentiation
from bpfree.lab.certify.measure import certify

__all__ = ["Certificate", "Differentiation", "certify"]
