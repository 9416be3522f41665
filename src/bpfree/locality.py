"""What a learning rule says of itself: how far it differentiates, and what its layers wait for.

`bpfree.certify` measures all of it on the running rule. A *part* is what a rule trains by itself: a segment of a local
rule, a block of NoProp; to a rule that has no parts each layer is one.
"""

from typing import Literal, NamedTuple

Through = Literal["nothing", "part", "net"]
Transports = Literal["none", "signs", "weights"]
Memory = Literal["flat", "grows"]


class Locality(NamedTuple):
    """Properties of a rule, each at its worst; the defaults are backprop's, so who says nothing promises nothing.

    Attributes:
        through: what a single objective is differentiated through at most: "nothing", a "part", or the "net".
        waits: whether a part waits for what comes after it, such as the output's error, before it can learn.
        transports: what of a forward weight the way back from a later part reads: "none" of it, "signs", or "weights".
        memory: whether the activations that are held at once grow with the number of parts, or stay "flat".
    """

    through: Through = "net"
    waits: bool = True
    transports: Transports = "weights"
    memory: Memory = "grows"

    def worse_than(self, other: "Locality") -> list[str]:
        """Names of the properties in which this one is worse.

        >>> Locality(through="part").worse_than(Locality(through="nothing", waits=False))
        ['through', 'waits']
        """
        return [name for name, found, said in zip(self._fields, self, other, strict=True) if _rank(found) > _rank(said)]


BLACK_BOX = Locality(through="nothing", transports="none", memory="flat")
"""Of a rule that differentiates nothing. It waits: a member has no score before the output is there."""

LOCAL = Locality(through="part", waits=False, transports="none", memory="flat")
"""Of parts that learn while the forward pass goes by."""

_ORDER: tuple[object, ...] = (False, "nothing", "none", "flat", "part", "signs", True, "net", "weights", "grows")


def _rank(value: object) -> int:
    return _ORDER.index(value)
