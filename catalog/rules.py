"""Labels that follow from published scores by declared rules."""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from sqlalchemy import Select, and_, literal, or_, select, update
from sqlalchemy.orm import Session

from catalog.declarations import Rule, TaxonomySpec
from catalog.orm import Head, HeadLabel, Label, Metric, Model, Probe, Relation, Score, Taxonomy


def apply_rules(session: Session, model: str, spec: TaxonomySpec) -> int:
    """Make a model's rule labels of one taxonomy what its published scores say now.

    Labels by people or from publications are left alone. What no longer holds is retired, not
    deleted; what holds as before is not touched.

    Args:
        session: In a transaction.
        model: By its name; labels are given to the heads that the scores are of.
        spec: The rules.

    Returns:
        The number of labels that hold.
    """
    taxonomy_id = ensure_taxonomy(session, spec.name, spec.description)
    now = datetime.now(UTC)
    found: dict[tuple[int, str], _Finding] = {}
    for rule in spec.rules:
        for head_id, label, metric, value, measured_by in session.execute(_matches(rule, model)):
            finding = found.setdefault((head_id, label), _Finding(measured_by))
            finding.reasons.append(f"{metric} {value:.3g} >= {rule.threshold:g}")
    label_ids = {label: ensure_label(session, taxonomy_id, label) for _, label in found}
    wanted = {
        (head_id, label_ids[label]): (", ".join(finding.reasons), finding.run_id)
        for (head_id, label), finding in found.items()
    }
    for given in session.scalars(_given(model, taxonomy_id)):
        key = (given.head_id, given.label_id)
        if wanted.get(key) == (given.reason, given.run_id):
            del wanted[key]
        else:
            given.retired_at = now
    session.add_all(
        HeadLabel(
            head_id=head_id,
            label_id=label_id,
            source="rule",
            reason=reason,
            run_id=measured_by,
            added_at=now,
        )
        for (head_id, label_id), (reason, measured_by) in wanted.items()
    )
    session.flush()
    return len(found)


@dataclass
class _Finding:
    """Why a head has a label: the run that measured it, and every score that reaches a rule."""

    run_id: int
    reasons: list[str] = field(default_factory=list)


def _given(model: str, taxonomy_id: int) -> Select[HeadLabel]:
    """A model's rule labels of a taxonomy that are not retired."""
    return (
        select(HeadLabel)
        .join(Head, Head.id == HeadLabel.head_id)
        .join(Model, Model.id == Head.model_id)
        .join(Label, Label.id == HeadLabel.label_id)
        .where(
            Model.name == model,
            Label.taxonomy_id == taxonomy_id,
            HeadLabel.source == "rule",
            HeadLabel.retired_at.is_(None),
        )
    )


def _matches(rule: Rule, model: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - SQLAlchemy's type is longer than the query
    """Head, label, metric, value and run of every score that reaches the rule's threshold."""
    label = Relation.category if rule.label is None else literal(rule.label)
    conditions = [
        Model.name == model,
        or_(Metric.name == rule.metric, Metric.family == rule.metric),
        Score.value >= rule.threshold,
        label.is_not(None),
    ]
    if rule.probe is not None:
        conditions.append(Probe.name == rule.probe)
    return (
        select(Score.head_id, label, Metric.name, Score.value, Score.run_id)
        .join(Head, Head.id == Score.head_id)
        .join(Model, Model.id == Head.model_id)
        .join(Metric, Metric.id == Score.metric_id)
        .join(Probe, Probe.id == Score.probe_id)
        .outerjoin(Relation, and_(Relation.probe_id == Probe.id, Relation.name == Metric.parameter))
        .where(and_(*conditions))
        .order_by(Score.head_id, Score.value.desc())
    )


def declare(session: Session, spec: TaxonomySpec) -> None:
    """Keep a taxonomy's declared rules in the catalog."""
    taxonomy_id = ensure_taxonomy(session, spec.name, spec.description)
    rules = {"rules": [asdict(rule) for rule in spec.rules]}
    session.execute(
        update(Taxonomy)
        .where(Taxonomy.id == taxonomy_id)
        .values(version=spec.version, description=spec.description, rules=rules)
    )


def ensure_taxonomy(session: Session, name: str, description: str) -> int:
    """The id of the taxonomy of this name, made if there is none."""
    found = session.scalars(select(Taxonomy.id).where(Taxonomy.name == name)).one_or_none()
    if found is not None:
        return found
    taxonomy = Taxonomy(name=name, version=1, description=description, rules=None)
    session.add(taxonomy)
    session.flush()
    return taxonomy.id


def ensure_label(session: Session, taxonomy_id: int, name: str) -> int:
    """The id of the label of this name in a taxonomy, made if there is none."""
    found = session.scalars(
        select(Label.id).where(Label.taxonomy_id == taxonomy_id, Label.name == name)
    ).one_or_none()
    if found is not None:
        return found
    label = Label(taxonomy_id=taxonomy_id, name=name, description=None)
    session.add(label)
    session.flush()
    return label.id
