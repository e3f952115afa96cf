"""Labels that follow from published scores by declared rules."""

from dataclasses import asdict
from datetime import UTC, datetime

from sqlalchemy import and_, insert, literal, or_, select, update
from sqlalchemy.orm import Session

from catalog.declarations import Rule, TaxonomySpec
from catalog.orm import Head, HeadLabel, Label, Metric, Probe, Relation, Score, Taxonomy


def apply_rules(session: Session, model_id: int, spec: TaxonomySpec, run_id: int) -> int:
    """Replace a model's rule labels of one taxonomy by what its published scores say now.

    Labels by people or from publications are left alone; replaced ones are retired, not deleted.

    Returns:
        The number of labels given.
    """
    taxonomy_id = _sync_taxonomy(session, spec)
    now = datetime.now(UTC)
    of_model = select(Head.id).where(Head.model_id == model_id)
    of_taxonomy = select(Label.id).where(Label.taxonomy_id == taxonomy_id)
    session.execute(
        update(HeadLabel)
        .where(
            HeadLabel.head_id.in_(of_model),
            HeadLabel.label_id.in_(of_taxonomy),
            HeadLabel.source == "rule",
            HeadLabel.retired_at.is_(None),
        )
        .values(retired_at=now)
    )
    given: dict[tuple[int, str], list[str]] = {}
    for rule in spec.rules:
        for head_id, label, metric, value in session.execute(_matches(rule, model_id)):
            reason = f"{metric} {value:.3g} >= {rule.threshold:g}"
            given.setdefault((head_id, label), []).append(reason)
    label_ids = {label: ensure_label(session, taxonomy_id, label) for _, label in given}
    if given:
        session.execute(
            insert(HeadLabel),
            [
                {
                    "head_id": head_id,
                    "label_id": label_ids[label],
                    "source": "rule",
                    "reason": ", ".join(reasons),
                    "run_id": run_id,
                    "added_at": now,
                }
                for (head_id, label), reasons in given.items()
            ],
        )
    return len(given)


def _matches(rule: Rule, model_id: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 - SQLAlchemy's type is longer than the query
    """Head, label, metric and value of every score that reaches the rule's threshold."""
    label = Relation.category if rule.label is None else literal(rule.label)
    conditions = [
        Head.model_id == model_id,
        or_(Metric.name == rule.metric, Metric.family == rule.metric),
        Score.value >= rule.threshold,
        label.is_not(None),
    ]
    if rule.probe is not None:
        conditions.append(Probe.name == rule.probe)
    return (
        select(Score.head_id, label, Metric.name, Score.value)
        .join(Head, Head.id == Score.head_id)
        .join(Metric, Metric.id == Score.metric_id)
        .join(Probe, Probe.id == Score.probe_id)
        .outerjoin(Relation, and_(Relation.probe_id == Probe.id, Relation.name == Metric.parameter))
        .where(and_(*conditions))
        .order_by(Score.head_id, Score.value.desc())
    )


def _sync_taxonomy(session: Session, spec: TaxonomySpec) -> int:
    rules = {"rules": [asdict(rule) for rule in spec.rules]}
    taxonomy_id = ensure_taxonomy(session, spec.name, spec.description)
    session.execute(
        update(Taxonomy)
        .where(Taxonomy.id == taxonomy_id)
        .values(version=spec.version, description=spec.description, rules=rules)
    )
    return taxonomy_id


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
