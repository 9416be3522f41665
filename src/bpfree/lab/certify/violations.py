"""Where what was measured is worse than what a rule says of itself."""

from collections.abc import Iterator

from bpfree.lab.certify.certificate import Certificate, Differentiation, shorten
from bpfree.rule import Locality, Memory, Through, Transports


def measured_locality(found: Certificate) -> Locality:
    """The properties that a rule could truthfully declare for this net."""
    return Locality(
        _through(found), any(found.waits_beyond(layer) for layer in found.waits), _transports(found), _memory(found)
    )


def find_breaches(found: Certificate) -> list[str]:
    """A line for each property in which the rule is worse than it says, and for each disagreement of measurements."""
    assert found.measured is not None
    told = {"through": _too_far, "waits": _waiting, "transports": _transporting, "memory": _growing}
    worse = found.measured.worse_than(found.declared)
    lines = [f"{name}: declared {_said(found, name)}, but {line}" for name in worse for line in told[name](found)]
    return lines + list(_disagreements(found))


def parts_of(found: Certificate, objective: Differentiation) -> list[str]:
    """Parts that the objective is differentiated through, its copies and what it is carried on to by hand included."""
    layers = [*objective.through, *(layer for layer in objective.reaches if layer in found.layers)]
    if objective.signal and objective.through:
        layers += [layer for layer in objective.moves if layer in found.layers]
    return list(dict.fromkeys(found.part_of(layer) for layer in layers))


def _through(found: Certificate) -> Through:
    most = max((len(parts_of(found, objective)) for objective in found.objectives), default=0)
    return "nothing" if most == 0 else "part" if most == 1 else "net"


def _transports(found: Certificate) -> Transports:
    kinds = {
        kind for i, own in found.transport.items() for j, kind in own.items() if found.part_of(i) != found.part_of(j)
    }
    return "weights" if "weights" in kinds else "signs" if kinds else "none"


def _memory(found: Certificate) -> Memory:
    return "grows" if found.held is not None and found.held.grows else "flat"


def _said(found: Certificate, name: str) -> str:
    said = getattr(found.declared, name)
    return {"part": "one part at most", False: "no", True: "yes"}.get(said, str(said))


def _too_far(found: Certificate) -> Iterator[str]:
    allowed = 1 if found.declared.through == "part" else 0
    for objective in found.objectives:
        parts = parts_of(found, objective)
        if len(parts) > allowed:
            layers = shorten(objective.through or objective.reaches)
            yield (
                f"objective '{objective.name}' is differentiated through {layers}, a chain of {objective.chain}, "
                f"which are of {shorten(parts)}"
            )


def _waiting(found: Certificate) -> Iterator[str]:
    for layer in found.waits:
        if later := found.waits_beyond(layer):
            yield f"the gradient of {layer} depends on the weights of {shorten(later)} behind it"


def _transporting(found: Certificate) -> Iterator[str]:
    for layer, own in found.transport.items():
        other = [j for j in own if found.part_of(j) != found.part_of(layer)]
        if other:
            kinds = "weights" if "weights" in own.values() else "signs of the weights"
            yield f"on a way back the gradient of {layer} reads the {kinds} of {shorten(other)}"


def _growing(found: Certificate) -> Iterator[str]:
    assert found.held is not None
    yield f"activations of {found.held.parts} of {found.held.of} parts are held at once"


def _disagreements(found: Certificate) -> Iterator[str]:
    for objective in found.objectives:
        if objective.disagrees:
            yield (
                f"graph: objective '{objective.name}' and the gradient of {shorten(objective.disagrees)} go together "
                "by its graph and not by perturbation, or the other way round"
            )
