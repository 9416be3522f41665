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


def find_unmeasured(declared: Locality, measured: Measurements) -> list[str]:
    """Return one line for each property that is better than the worst by declaration, and that could not be measured.

    Args:
        declared: the rule's declaration, `Rule.locality()`.
        measured: the measurements of the rule on a net.
    """
    worst, lines = Locality(), []
    unknown = [name for name, value in measured.properties.items() if value is None]
    if "transports" in unknown and declared.transports != worst.transports:
        layer, others = next(iter(measured.undecided.items()))
        lines.append(
            f"transports: declared {declared.transports}, but nobody can tell if the gradient of {layer} reads the "
            f"weights of {shorten(others)} on the way back: it changes with them, and values that are computed outside "
            "of modules cannot be held. Call the modules of the net, as net(x) does"
        )
    if "memory" in unknown and declared.memory != worst.memory:
        lines.append(f"memory: declared {declared.memory}, but {_unmeasured_memory(measured)}")
    return lines


def _unmeasured_memory(measured: Measurements) -> str:
    if measured.memory is None:
        return "it could not be measured: torch does not show what is kept while a function is transformed"
    memory = measured.memory
    if not memory.parts:
        return "no module of the net ran, so no activation was seen"
    return (
        f"{memory.parts_at_once} of {memory.parts} parts are in memory at once, and nobody can tell if it would be "
        "more with more parts. Use a deeper net"
    )


def _declared(declared: Locality, name: str) -> str:
    value = getattr(declared, name)
    return {"part": "one part at most", False: "no", True: "yes"}.get(value, str(value))


def _too_far(declared: Locality, measured: Measurements) -> Iterator[str]:
    allowed = 1 if declared.through == "part" else 0
    for layer in measured.dependencies.unexplained:
        if others := measured.by_hand(layer):
            yield f"the gradient of {layer} is computed by hand through the weights of {shorten(others)}"
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
            late = set(later) <= set(measured.dependencies.late.get(layer, ()))
            when = " in an earlier step" * late
            yield f"the gradient of {layer} depends on the weights of {shorten(later)} behind it{when}"


def _transporting(declared: Locality, measured: Measurements) -> Iterator[str]:
    for layer in measured.dependencies.transport:
        read = measured.transported_to(layer)
        for kind, words in _READ.items():
            if others := [other for other in read if read[other] == kind]:
                yield f"on the way back the gradient of {layer} reads the {words} of {shorten(others)}"


_READ = {
    "weights": "weights",
    "initial": "weights, as they were when the rule was bound,",
    "signs": "signs of the weights",
}


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
