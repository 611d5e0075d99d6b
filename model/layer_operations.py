"""Operations of one layer in a training step, counted from shapes: matrix products and convolutions alone."""


def layer_operations(products: float, inputs_learn: bool, weights_learn: bool) -> float:
    """Multiplications and additions of a layer whose forward pass multiplies `products` pairs of numbers and adds them
    up.

    Either gradient, to the inputs and to the weights, takes as many again, where something learns from it.
    """
    return 2.0 * products * (1 + inputs_learn + weights_learn)
