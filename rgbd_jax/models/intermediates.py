"""Named intermediate values (features, attention, recoupling weights), kept on request only."""

from collections.abc import Collection, Mapping

from jaxtyping import Array


class Intermediates:
    """Collects intermediate values by name; under `jax.jit` those not requested cost nothing.

    Args:
        names: the intermediate values to keep.
        perturbations: name -> what is added to an intermediate value before the network continues with it; the
            gradient with respect to zeros is the gradient with respect to that value, as in Grad-CAM.
    """

    def __init__(self, names: Collection[str] = (), perturbations: Mapping[str, Array] | None = None):
        self.names = frozenset(names)
        self.perturbations = perturbations or {}
        self.seen: list[str] = []
        self.values: dict[str, Array] = {}
        self._prefix = ""

    def of(self, modality: str) -> "Intermediates":
        """Returns a collector for one modality of several: it collects here, under "modality/name"."""
        part = Intermediates(self.names, self.perturbations)
        part.seen, part.values, part._prefix = self.seen, self.values, f"{modality}/"
        return part

    def sow(self, name: str, value: Array) -> Array:
        """Returns the value plus its perturbation, if any, and keeps it if it was requested."""
        name = self._prefix + name
        self.seen.append(name)
        if name in self.perturbations:
            value = value + self.perturbations[name].astype(value.dtype)
        if name in self.names:
            self.values[name] = value
        return value

    def collected(self) -> dict[str, Array]:
        """Returns the requested values.

        Raises:
            ValueError: the network has no intermediate value of a requested name.
        """
        if unknown := sorted(self.names - set(self.seen)):
            raise ValueError(f"no intermediate value named {', '.join(unknown)}; available: {', '.join(self.seen)}")
        return self.values
