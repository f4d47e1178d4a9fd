"""Named intermediate results that people look at (features, attention, recoupling weights), kept only on request."""

from collections.abc import Collection

from jaxtyping import Array


class Intermediates:
    """Collects the intermediate results whose names were asked for; under `jax.jit` the others cost nothing.

    After a forward pass `seen` holds the names that the network offers and `values` those that were asked for.
    """

    def __init__(self, names: Collection[str] = ()):
        self.names = frozenset(names)
        self.seen: list[str] = []
        self.values: dict[str, Array] = {}
        self._prefix = ""

    def of(self, modality: str) -> "Intermediates":
        """Returns a collector for one stream of several: it collects here, under "modality/name"."""
        part = Intermediates(self.names)
        part.seen, part.values, part._prefix = self.seen, self.values, f"{modality}/"
        return part

    def offer(self, name: str, value: Array) -> None:
        """Keeps value under name if it was asked for."""
        name = self._prefix + name
        self.seen.append(name)
        if name in self.names:
            self.values[name] = value

    def collected(self) -> dict[str, Array]:
        """Returns the values that were asked for.

        Raises:
            ValueError: a name that the network does not offer was asked for.
        """
        unknown = sorted(self.names - set(self.seen))
        if unknown:
            raise ValueError(f"no intermediate result named {', '.join(unknown)}; there are: {', '.join(self.seen)}")
        return self.values
