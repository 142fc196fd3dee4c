"""May the new index take over? The evidence, the rule, and the reasons in words.

What lives here: the rule over evidence that was gathered. What does not: gathering it
(`comparison`), and the switch (`cutover`).

The rule: the last verification was clean, and the new side is not worse.

- With judgements, it is not worse if the lower end of the 95% interval of the difference in nDCG@10
  lies above -tolerance. The mean alone says little: with 50 queries two equal systems differ by
  0.02 as often as not.
- Without judgements nobody can tell which answers are better, since a better model gives other
  answers. What can be told is whether the new answers are of the same kind as the old ones, come in
  time, and come at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.significance import PairedDifference
from unified_embeddings.migration.record import MigrationRecord
from unified_embeddings.migration.states import State
from unified_embeddings.retrievers.transition_report import TransitionReport

GOAL = 0.05
"""The gain in nDCG@10 that the move is made for, as a share of the old one. Reported, no condition:
whoever moves for another reason, such as licence or cost, need not gain anything."""


_VERIFIED: frozenset[State] = frozenset({"verified", "shadow", "canary", "cut_over"})
"""States in which nothing was copied since the last verification. After a rollback it is repeated:
what was written meanwhile has to be there."""


@dataclass(frozen=True)
class GateOptions:
    """How much worse is still not worse.

    Attributes:
        tolerance: The loss in nDCG@10 that the interval may not rule out. 0.02 is less than users
            notice, and about what 300 judged queries can rule out.
        min_judged: Judged queries that are needed. An interval drawn from a few that happen to be
            alike has no width, and says nothing.
        min_compared: Questions that must have been compared, without judgements. With 100 a mean
            overlap is known to about 0.06.
        min_overlap: The least mean share of common nodes in the first ten. Two good models of the
            same language share 0.4 to 0.8; a broken index shares next to nothing.
        max_slowdown: The 95th percentile of the new latency may be this many times the old one.
        free_seconds: A new 95th percentile below this is never too slow: nobody notices 0.1 s.
        max_failures: Share of the questions that the new side may fail at.

    Raises:
        InputError: If a number is negative.
    """

    tolerance: float = 0.02
    min_judged: int = 30
    min_compared: int = 100
    min_overlap: float = 0.3
    max_slowdown: float = 2.0
    free_seconds: float = 0.1
    max_failures: float = 0.01

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value >= 0:
                raise InputError(f"{name} must be a number >= 0, got {value!r}")


@dataclass(frozen=True)
class Quality:
    """Both sides rated against the same judgements.

    Attributes:
        data: Name of the judged data.
        old_ndcg: The old side's mean nDCG@10.
        new_ndcg: The new side's.
        difference: New - old: its mean, interval and p.
    """

    data: str
    old_ndcg: float
    new_ndcg: float
    difference: PairedDifference

    @property
    def gain(self) -> float | None:
        """The difference as a share of the old side's nDCG; None if that is 0."""
        return self.difference.mean / self.old_ndcg if self.old_ndcg else None


@dataclass(frozen=True)
class GateCheck:
    """One condition.

    Attributes:
        name: "verified", "quality", "overlap", "latency" or "failures".
        passed: Whether it holds.
        reason: Why or why not, in words.
    """

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class GateReport:
    """Whether the new index may take over, and why.

    Attributes:
        checks: The conditions.
        quality: The evidence with judgements; None without.
        traffic: The evidence without; None with judgements.
        goal: What is to be said of the stated goal; None without judgements.
    """

    checks: tuple[GateCheck, ...]
    quality: Quality | None = None
    traffic: TransitionReport | None = None
    goal: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every condition holds."""
        return all(check.passed for check in self.checks)

    @property
    def failed_checks(self) -> tuple[GateCheck, ...]:
        """The conditions that do not hold."""
        return tuple(check for check in self.checks if not check.passed)

    def describe(self) -> str:
        """Return the report in words, a line for each condition."""
        lines = ["the gate is open" if self.passed else "the gate is closed"]
        for check in self.checks:
            lines.append(f"{'passed' if check.passed else 'FAILED'} {check.name}: {check.reason}")
        if self.goal is not None:
            lines.append(f"goal: {self.goal}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Return the report as values that JSON can hold."""
        return {"passed": self.passed} | dataclasses.asdict(self)


def judge(
    record: MigrationRecord,
    *,
    quality: Quality | None = None,
    traffic: TransitionReport | None = None,
    unrepaired: int = 0,
    options: GateOptions | None = None,
) -> GateReport:
    """Apply the rule to the evidence; judgements count more than traffic.

    Args:
        record: The migration's record, with its last verification.
        quality: Both sides against judgements.
        traffic: Both sides asked the same questions; used without `quality`.
        unrepaired: Writes that reached the source only; `journal.read_unrepaired` tells.
        options: The limits; None takes the defaults.
    """
    limits = options or GateOptions()
    verified = _check_verified(record, unrepaired)
    if quality is not None:
        return GateReport(
            checks=(verified, _check_quality(quality, limits)),
            quality=quality,
            goal=_describe_goal(quality),
        )
    if traffic is None:
        missing = GateCheck(
            "quality",
            passed=False,
            reason="nothing is known about the new answers: give judged queries (--data), or "
            "compare both sides first (`migrate shadow --queries FILE`)",
        )
        return GateReport(checks=(verified, missing))
    checks = (
        verified,
        _check_overlap(traffic, limits),
        _check_latency(traffic, limits),
        _check_failures(traffic, limits),
    )
    return GateReport(checks=checks, traffic=traffic)


def _check_verified(record: MigrationRecord, unrepaired: int) -> GateCheck:
    verify: Mapping[str, object] = record.verify or {}
    if record.state not in _VERIFIED or not verify:
        reason = f"the migration is {record.state!r}; run `migrate start` and `migrate verify`"
    elif verify.get("is_clean") is not True:
        problems = verify.get("problems")
        found = "unknown"
        if isinstance(problems, list) and problems:
            found = "; ".join(str(problem) for problem in problems)
        reason = (
            f"the last verification found problems: {found or 'unknown'}. Run `migrate start` and "
            "`migrate verify`"
        )
    elif unrepaired:
        reason = (
            f"{unrepaired} writes have reached the source only; run `migrate start` and `migrate "
            "verify`"
        )
    else:
        return GateCheck("verified", passed=True, reason="the last verification was clean")
    return GateCheck("verified", passed=False, reason=reason)


def _check_quality(quality: Quality, limits: GateOptions) -> GateCheck:
    difference = quality.difference
    facts = (
        f"nDCG@10 on {quality.data} is {quality.new_ndcg:.4f} after {quality.old_ndcg:.4f}: a "
        f"difference of {difference.mean:+.4f}, 95% interval {difference.low:+.4f} to "
        f"{difference.high:+.4f}, p = {difference.p_value:.4f}, {difference.queries} queries"
    )
    if difference.queries < limits.min_judged:
        verdict = f"{limits.min_judged} are needed: judge more queries, or accept --min-judged"
        return GateCheck("quality", passed=False, reason=f"{facts}; {verdict}")
    if quality.new_ndcg <= 0:
        verdict = "the new side finds nothing that is relevant; are these judgements of its texts?"
        return GateCheck("quality", passed=False, reason=f"{facts}; {verdict}")
    if difference.low > -limits.tolerance:
        verdict = f"a loss of more than {limits.tolerance:g} is ruled out"
        return GateCheck("quality", passed=True, reason=f"{facts}; {verdict}")
    if difference.high < 0:
        verdict = "the new side is worse"
    else:
        half_width = (difference.high - difference.low) / 2
        verdict = (
            f"a loss of more than {limits.tolerance:g} is not ruled out. The interval is "
            f"{half_width:.3f} wide on either side: judge more queries, or accept a larger "
            "--tolerance"
        )
    return GateCheck("quality", passed=False, reason=f"{facts}; {verdict}")


def _describe_goal(quality: Quality) -> str:
    gain = quality.gain
    if gain is None:
        return f"a gain of {GOAL:.0%} cannot be stated, since the old side found nothing relevant"
    outcome = "reached" if gain >= GOAL else "not reached"
    return f"a gain of {GOAL:.0%} is {outcome}: {gain:+.1%}"


def _check_overlap(traffic: TransitionReport, limits: GateOptions) -> GateCheck:
    if traffic.compared < limits.min_compared or traffic.mean_overlap is None:
        return GateCheck(
            "overlap",
            passed=False,
            reason=f"{traffic.compared} questions were compared, {limits.min_compared} are needed; "
            "ask more in `migrate shadow`",
        )
    facts = (
        f"of the first {traffic.depth} nodes {traffic.mean_overlap:.0%} are common, over "
        f"{traffic.compared} questions"
    )
    if traffic.mean_overlap >= limits.min_overlap:
        return GateCheck(
            "overlap", passed=True, reason=f"{facts}; at least {limits.min_overlap:.0%} are needed"
        )
    return GateCheck(
        "overlap",
        passed=False,
        reason=f"{facts}, where {limits.min_overlap:.0%} are needed. Either the new side is "
        "broken, or it answers quite differently: look at the examples of the report, or prove it "
        "better with judged queries (--data)",
    )


def _check_latency(traffic: TransitionReport, limits: GateOptions) -> GateCheck:
    old, new = traffic.old_latency, traffic.new_latency
    if old is None or new is None:
        return GateCheck("latency", passed=False, reason="it was not measured on both sides")
    facts = f"95% of the new answers take up to {new.p95:.3f} s, of the old ones {old.p95:.3f} s"
    if new.p95 <= limits.free_seconds:
        return GateCheck(
            "latency", passed=True, reason=f"{facts}; below {limits.free_seconds:g} s is fast"
        )
    if new.p95 <= limits.max_slowdown * old.p95:
        return GateCheck(
            "latency", passed=True, reason=f"{facts}; up to {limits.max_slowdown:g} times is fine"
        )
    return GateCheck(
        "latency",
        passed=False,
        reason=f"{facts}: more than {limits.max_slowdown:g} times. Give the new side more "
        "hardware, a smaller model or another precision, or accept a larger --max-slowdown",
    )


def _check_failures(traffic: TransitionReport, limits: GateOptions) -> GateCheck:
    failures = traffic.failed.get("new", 0) + sum(traffic.fallbacks.values())
    asked = traffic.compared + failures
    share = failures / asked if asked else 0.0
    facts = f"the new side failed at {failures} of {asked} questions"
    if share <= limits.max_failures:
        return GateCheck("failures", passed=True, reason=facts)
    last = f"; the last time with: {traffic.last_error}" if traffic.last_error else ""
    return GateCheck(
        "failures",
        passed=False,
        reason=f"{facts}, more than {limits.max_failures:.1%}{last}",
    )
