"""Formulas that score points by their payload and their scores, as Qdrant's core takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.bounds import require_range
from unified_embeddings.stores.edge.core_types import CoreQuery
from unified_embeddings.stores.edge.filters import to_core_filter
from unified_embeddings.stores.edge.limits import FILTER_DEPTH, is_deeper
from unified_embeddings.stores.edge.points import to_json_payload
from unified_embeddings.stores.edge.translation import unsupported

_CONDITIONS = (
    qm.FieldCondition, qm.IsEmptyCondition, qm.IsNullCondition, qm.HasIdCondition,
    qm.HasVectorCondition, qm.SliceCondition, qm.NestedCondition, qm.Filter,
)  # fmt: skip
_OF_SEVERAL: dict[Any, tuple[str, Any]] = {
    qm.MultExpression: ("mult", core.Expression.Mult),
    qm.SumExpression: ("sum", core.Expression.Sum),
    qm.MaxExpression: ("max", core.Expression.Max),
    qm.MinExpression: ("min", core.Expression.Min),
}
"""Expression of several others → its field and the core's constructor."""
_OF_ONE: dict[Any, tuple[str, Any]] = {
    qm.NegExpression: ("neg", core.Expression.Neg),
    qm.AbsExpression: ("abs", core.Expression.Abs),
    qm.SqrtExpression: ("sqrt", core.Expression.Sqrt),
    qm.ExpExpression: ("exp", core.Expression.Exp),
    qm.Log10Expression: ("log10", core.Expression.Log10),
    qm.LnExpression: ("ln", core.Expression.Ln),
    qm.AcoshExpression: ("acosh", core.Expression.Acosh),
}
"""Expression of one other → its field and the core's constructor."""
_DECAYS: dict[Any, tuple[str, Any]] = {
    qm.LinDecayExpression: ("lin_decay", core.DecayKind.Lin),
    qm.ExpDecayExpression: ("exp_decay", core.DecayKind.Exp),
    qm.GaussDecayExpression: ("gauss_decay", core.DecayKind.Gauss),
}
_SMALLEST = 2.0**-126
"""The smallest scale of a decay, which must be above zero as a float32."""


def to_core_formula(query: qm.FormulaQuery) -> CoreQuery:
    """Return a formula as the core takes it.

    Raises:
        InputError: If it is nested too deeply, or a part of it has no meaning.
    """
    if is_deeper(query.formula, FILTER_DEPTH):
        raise InputError(f"the formula is nested more than {FILTER_DEPTH} levels deep")
    defaults, _ = to_json_payload(query.defaults or {})
    return core.Formula(_to_core_expression(query.formula), defaults)


def formula_error(reason: object) -> InputError:
    """Return the error for a formula that has no value for some point."""
    return InputError(
        "the formula has no value for one of the points: a field is missing there or is no number "
        "(give it in defaults=), or the result is not finite, as after a division by zero "
        f"(by_zero_default=). The core says: {reason}"
    )


def _to_core_expression(given: Any) -> CoreQuery:
    if isinstance(given, bool):
        raise InputError(f"an expression must be a number, a field's name or a model, got {given}")
    if isinstance(given, int | float):
        return core.Expression.Constant(float(given))
    if isinstance(given, str):
        return core.Expression.Variable(given)
    if isinstance(given, _CONDITIONS):
        return core.Expression.Condition(to_core_filter(qm.Filter(must=[given])))
    kind = type(given)
    if kind in _OF_SEVERAL:
        field, make = _OF_SEVERAL[kind]
        parts = getattr(given, field)
        if not parts and field in ("max", "min"):
            raise InputError(f"the expression {field} needs something to choose from")
        return make([_to_core_expression(part) for part in parts])
    if kind in _OF_ONE:
        field, make = _OF_ONE[kind]
        return make(_to_core_expression(getattr(given, field)))
    if kind in _DECAYS:
        field, decay = _DECAYS[kind]
        return _to_core_decay(decay, getattr(given, field))
    if kind in _OTHERS:
        return _OTHERS[kind](given)
    raise unsupported(f"the expression {kind.__name__}")


def _to_core_decay(kind: Any, params: qm.DecayParamsExpression) -> CoreQuery:
    require_range("a decay's scale", params.scale, _SMALLEST)
    is_linear = kind == core.DecayKind.Lin
    require_range("a decay's midpoint", params.midpoint, 0, 1)
    if not is_linear and params.midpoint in (0, 1):
        raise InputError(f"a decay's midpoint must be between 0 and 1, got {params.midpoint}")
    target = None if params.target is None else _to_core_expression(params.target)
    return core.Expression.Decay(
        kind, _to_core_expression(params.x), target, params.midpoint, params.scale
    )


def _to_core_division(given: qm.DivExpression) -> CoreQuery:
    left, right = given.div.left, given.div.right
    return core.Expression.Div(
        _to_core_expression(left), _to_core_expression(right), given.div.by_zero_default
    )


def _to_core_power(given: qm.PowExpression) -> CoreQuery:
    base, exponent = given.pow.base, given.pow.exponent
    return core.Expression.Pow(_to_core_expression(base), _to_core_expression(exponent))


def _to_core_distance(given: qm.GeoDistance) -> CoreQuery:
    origin = given.geo_distance.origin
    return core.Expression.GeoDistance(core.GeoPoint(origin.lon, origin.lat), given.geo_distance.to)


_OTHERS: dict[Any, Callable[[Any], CoreQuery]] = {
    qm.DivExpression: _to_core_division,
    qm.PowExpression: _to_core_power,
    qm.GeoDistance: _to_core_distance,
    qm.DatetimeExpression: lambda given: core.Expression.Datetime(given.datetime),
    qm.DatetimeKeyExpression: lambda given: core.Expression.DatetimeKey(given.datetime_key),
}
