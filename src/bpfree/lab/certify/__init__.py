"""A locality certificate for any rule on any net."""

from bpfree.lab.certify.certificate import Certificate
from bpfree.lab.certify.measure import certify
from bpfree.lab.certify.measurements import Differentiation, Measurements

__all__ = ["Certificate", "Differentiation", "Measurements", "certify"]
