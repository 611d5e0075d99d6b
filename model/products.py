"""Work of matrix products and convolutions, counted from shapes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Products:
    """Multiplications, each with its addition: of a forward pass, of the gradients to its inputs, and of those to its weights."""

    forward: float = 0.0
    to_inputs: float = 0.0
    to_weights: float = 0.0

    def __add__(self, other: "Products") -> "Products":
        return Products(
            self.forward + other.forward, self.to_inputs + other.to_inputs, self.to_weights + other.to_weights
        )

    def __mul__(self, factor: float) -> "Products":
        return Products(self.forward * factor, self.to_inputs * factor, self.to_weights * factor)

    @property
    def operations(self) -> float:
        """Multiplications and additions of a training step."""
        return 2.0 * (self.forward + self.to_inputs + self.to_weights)


def layer_products(count: float, inputs_learn: bool, weights_learn: bool) -> Products:
    """Of a layer whose forward pass takes `count`: either gradient takes as many, where something learns from it."""
    return Products(count, count * inputs_learn, count * weights_learn)
