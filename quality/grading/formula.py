"""`calculate_output` of a multi grader: arithmetic of scores, without names or calls beyond a fixed list."""

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}


def check_formula(formula: str, names: Collection[str]) -> None:
    """Check that a formula is arithmetic of these names.

    Raises:
        ValueError: It is not.
    """
    tree = _parsed(formula)
    for node in ast.walk(tree):
        _check(formula, node, names)
    try:
        evaluate_formula(formula, dict.fromkeys(names, 0.5))
    except (TypeError, KeyError):
        raise ValueError(f"calculate_output {formula!r}: a function has the wrong number of arguments") from None


def evaluate_formula(formula: str, scores: Mapping[str, float]) -> float:
    """Its value; 0 where it has none, as after a division by zero."""
    try:
        value = _evaluate(_parsed(formula).body, scores)
    except (ArithmeticError, ValueError):
        return 0.0
    return value if math.isfinite(value) else 0.0


def _parsed(formula: str) -> ast.Expression:
    try:
        return ast.parse(formula.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"calculate_output must be a formula such as 0.8 * a + 0.2 * b; got {formula!r}") from None


def _check(formula: str, node: ast.AST, names: Collection[str]) -> None:
    if isinstance(node, ast.Name):
        if node.id not in names and node.id not in _FUNCTIONS:
            raise ValueError(f"calculate_output names {node.id!r}; there is {', '.join(sorted(names))}")
        return
    is_number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
    is_operation = isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS
    is_sign = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd)
    is_part = isinstance(node, ast.Expression | ast.operator | ast.unaryop | ast.expr_context)
    if not (is_number or (is_call and not node.keywords) or is_operation or is_sign or is_part):  # type: ignore[attr-defined]
        found = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
        raise ValueError(
            f"calculate_output {formula!r}: {found!r} is not allowed; use numbers, the graders' names, + - * / ** and "
            f"{', '.join(_FUNCTIONS)}"
        )


def _evaluate(node: ast.expr, scores: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=value):
            return float(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return scores[name]
        case ast.UnaryOp(op=sign, operand=operand):
            value = _evaluate(operand, scores)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, scores), _evaluate(right, scores))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return float(_FUNCTIONS[name](*(_evaluate(one, scores) for one in arguments)))
    raise ValueError(f"not arithmetic: {ast.unparse(node)}")
