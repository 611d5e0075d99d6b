"""A figure of the plan and the formula it was computed by."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# How sure a figure is: counted from files and formats, measured (here or in docs/measurements.md), stated by the user,
# or an estimate that leaves something out, which its note names. Of several inputs the least sure one counts.
Basis = Literal["counted", "measured", "stated", "estimate"]
OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
FUNCTIONS: dict[str, Callable[..., float]] = {"ceil": math.ceil, "floor": math.floor, "min": min, "max": max}


class Figure(BaseModel):
    """One line of the plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    section: str = Field(description="What it is about")
    name: str = Field(description="What it is, in words; unique within the section")
    value: float = Field(description="The figure")
    unit: str = Field(description="Its unit; empty for a count")
    formula: str = Field(description="How it follows from the inputs")
    inputs: dict[str, float] = Field(description="The inputs by their names in the formula")
    basis: Basis = Field(description="How sure it is")
    note: str = Field(default="", description="Where the inputs come from, and what is left out")


class Missing(BaseModel):
    """A figure that cannot be computed, and the setting that would allow it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    section: str = Field(description="What it is about")
    name: str = Field(description="Which figure")
    needs: str = Field(description="What to give")


Line = Figure | Missing


def figure(
    section: str, name: str, unit: str, formula: str, inputs: Mapping[str, float], basis: Basis, note: str = ""
) -> Figure:
    """A figure whose value is what its formula gives: sums, products, ceil, floor, min, max of inputs and numbers."""
    value = evaluate(formula, inputs)
    return Figure(
        section=section,
        name=name,
        value=value,
        unit=unit,
        formula=formula,
        inputs=dict(inputs),
        basis=basis,
        note=note,
    )


def evaluate(formula: str, inputs: Mapping[str, float]) -> float:
    """What a formula gives. Raises KeyError for a name that is no input, TypeError for anything but arithmetic."""
    return _value(ast.parse(formula, mode="eval").body, inputs)


def _value(node: ast.expr, inputs: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return inputs[name]
        case ast.BinOp(left=left, op=sign, right=right):
            return OPERATORS[type(sign)](_value(left, inputs), _value(right, inputs))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name](*(_value(argument, inputs) for argument in arguments))
        case _:
            raise TypeError(f"no arithmetic: {ast.unparse(node)}")
