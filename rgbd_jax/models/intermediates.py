"""Named intermediate results that people look at (features, attention, recoupling weights), kept only on request."""

from collections.abc import Collection, Mapping

from jaxtyping import Array


class Intermediates:
    """Collects the intermediate results whose names were asked for; under `jax.jit` the others cost nothing.

    After a forward pass `seen` holds the names that the network offers and `values` those that were asked for.

    Args:
        names: the intermediate results to keep.
        offsets: name -> what is added to an intermediate result before the network goes on with it; the gradient of
            zeros tells how the network's answer depends on that result. Only for results that the network goes on
            with as they are offered: `pooled_features`.
    """

    def __init__(self, names: Collection[str] = (), offsets: Mapping[str, Array] | None = None):
        self.names = frozenset(names)
        self.offsets = offsets or {}
        self.seen: list[str] = []
        self.values: dict[str, Array] = {}
        self._prefix = ""

    def of(self, modality: str) -> "Intermediates":
        """Returns a collector for one stream of several: it collects here, under "modality/name"."""
        part = Intermediates(self.names, self.offsets)
        part.seen, part.values, part._prefix = self.seen, self.values, f"{modality}/"
        return part

    def offer(self, name: str, value: Array) -> Array:
        """Returns the value, with what is to be added to it, and keeps it under its name if it was asked for."""
        name = self._prefix + name
        self.seen.append(name)
        if name in self.offsets:
            value = value + self.offsets[name].astype(value.dtype)
        if name in self.names:
            self.values[name] = value
        return value

    def collected(self) -> dict[str, Array]:
        """Returns the values that were asked for.

        Raises:
            ValueError: a name that the network does not offer was asked for.
        """
        unknown = sorted(self.names - set(self.seen))
        if unknown:
            raise ValueError(f"no intermediate result named {', '.join(unknown)}; there are: {', '.join(self.seen)}")
        return self.values
