"""Violations: places where a measurement is worse than the rule's declaration."""

from collections.abc import Iterator, Sequence

from bpfree.lab.certify.measurements import Measurements
from bpfree.rule import Locality

_MOST_NAMES = 6  # layers that are named in one line or cell


def find_violations(declared: Locality, measured: Measurements) -> list[str]:
    """Return one line for each violation.

    Args:
        declared: the rule's declaration, `Rule.locality()`.
        measured: the measurements of the rule on a net.

    Returns:
        Lines that begin with the violated property ("through", "waits", "transports", "memory"), or with "graph" where
        the graph and perturbation disagree. Empty if the rule is as local as declared.
    """
    evidence = {"through": _too_far, "waits": _waiting, "transports": _transporting, "memory": _growing}
    worse = measured.locality.worse_than(declared)
    lines = [
        f"{name}: declared {_declared(declared, name)}, but {line}"
        for name in worse
        for line in evidence[name](declared, measured)
    ]
    return lines + list(_disagreements(measured))


def _declared(declared: Locality, name: str) -> str:
    value = getattr(declared, name)
    return {"part": "one part at most", False: "no", True: "yes"}.get(value, str(value))


def _too_far(declared: Locality, measured: Measurements) -> Iterator[str]:
    allowed = 1 if declared.through == "part" else 0
    for objective in measured.objectives:
        parts = measured.parts_of(objective)
        if len(parts) > allowed:
            layers = shorten(objective.graph.through or objective.graph.reaches)
            yield (
                f"objective '{objective.name}' is differentiated through {layers}, a chain of {objective.graph.chain}, "
                f"which are of {shorten(parts)}"
            )


def _waiting(declared: Locality, measured: Measurements) -> Iterator[str]:
    for layer in measured.dependencies.waits:
        if later := measured.waits_beyond(layer):
            yield f"the gradient of {layer} depends on the weights of {shorten(later)} behind it"


def _transporting(declared: Locality, measured: Measurements) -> Iterator[str]:
    for layer in measured.dependencies.transport:
        if read := measured.transported_to(layer):
            kinds = "weights" if "weights" in read.values() else "signs of the weights"
            yield f"on the way back the gradient of {layer} reads the {kinds} of {shorten(list(read))}"


def _growing(declared: Locality, measured: Measurements) -> Iterator[str]:
    assert measured.memory is not None
    yield f"activations of {measured.memory.parts_at_once} of {measured.memory.parts} parts are in memory at once"


def _disagreements(measured: Measurements) -> Iterator[str]:
    for objective in measured.objectives:
        if objective.disagrees:
            yield (
                f"graph: objective '{objective.name}' and the gradient of {shorten(objective.disagrees)} are connected "
                "by only one of the two methods, graph or perturbation"
            )


def shorten(names: Sequence[str]) -> str:
    """Return names separated by commas; of many names the middle ones are left out.

    Example:
        >>> shorten(["fc1", "fc2", "fc3", "fc4", "fc5", "fc6", "fc7"])
        'fc1, fc2, .. fc7 (7)'
    """
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:2])}, .. {names[-1]} ({len(names)})"
