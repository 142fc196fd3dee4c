"""What the first rows of an input say about the options.

What lives here: which field is the text, and whether the fields that were asked for are there.
What does not: taking the first rows (`reader`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from unified_embeddings.bulk.input_parts import PlacedValue
from unified_embeddings.bulk.records import Unreadable
from unified_embeddings.bulk.rows import (
    ID_FIELDS,
    TEXT_FIELDS,
    InputOptions,
    build_row,
    list_fields,
    problem_row,
)
from unified_embeddings.errors import InputError


@dataclass(frozen=True)
class Sample:
    """The first records of one file.

    Attributes:
        name: What the file is called.
        records: Where each stands, and what it holds.
    """

    name: str
    records: Sequence[PlacedValue]

    def merge_fields(self) -> dict[str, object]:
        """Return every field of these records → its first value that is not null."""
        fields: dict[str, object] = {}
        for _, value in self.records:
            if isinstance(value, Mapping):
                for name, item in value.items():
                    if fields.get(name) is None:
                        fields[name] = item
        return fields


def choose_options(samples: Iterable[Sample], options: InputOptions) -> InputOptions:
    """Return the options with a text field, once the first rows agree with them.

    Args:
        samples: Of each file. Only one is held at a time.
        options: What the caller says.

    Raises:
        InputError: If there are no rows, a field is missing, or none of a file's first rows can be
            embedded.
    """
    empty_names: list[str] = []
    all_fields: dict[str, object] = {}
    has_rows = False
    id_fields = list(ID_FIELDS)
    for sample in samples:
        if not sample.records:
            empty_names.append(sample.name)
            continue
        has_rows = True
        fields = sample.merge_fields()
        if fields and options.text_field is None:
            options = replace(options, text_field=_find_text_field(sample.name, fields))
        _check_fields(sample, fields, options)
        _check_some_row_is_fine(sample, options)
        id_fields = [name for name in id_fields if _all_have(sample, name)]
        all_fields.update(dict.fromkeys(fields))
    if not has_rows:
        names = ", ".join(name for name in empty_names[:5] if name)
        raise InputError(f"the input holds no rows{f' ({names})' if names else ''}")
    for name in options.keep_fields or ():
        if name not in all_fields:
            raise InputError(
                f"the first rows have no field {name!r} to keep; {list_fields(all_fields)}"
            )
    if options.find_id and options.id_field is None and id_fields:
        options = replace(options, id_field=id_fields[0])
    return options


def _all_have(sample: Sample, name: str) -> bool:
    """Tell whether each row of a sample that can be read has a field."""
    rows = [value for _, value in sample.records if not isinstance(value, Unreadable)]
    return all(isinstance(row, Mapping) and row.get(name) is not None for row in rows)


def _find_text_field(name: str, fields: Mapping[str, object]) -> str:
    for candidate in TEXT_FIELDS:
        for field, value in fields.items():
            if isinstance(field, str) and field.casefold() == candidate and isinstance(value, str):
                return field
    raise InputError(
        _in_file(
            name,
            f"which field holds the text? None of the first rows has one of "
            f"{', '.join(TEXT_FIELDS)}; {list_fields(fields)}. Name it as the text field",
        )
    )


def _check_fields(sample: Sample, fields: Mapping[str, object], options: InputOptions) -> None:
    """Refuse a file of which no row has the text field or the id."""
    if not fields:
        if options.id_field is not None and any(
            isinstance(value, str) for _, value in sample.records
        ):
            raise InputError(
                _in_file(sample.name, f"lines of text have no id field {options.id_field!r}")
            )
        return
    for wanted, role in ((options.text_field, "text"), (options.id_field, "id")):
        if wanted is not None and wanted not in fields:
            raise InputError(
                _in_file(
                    sample.name,
                    f"the first rows have no field {wanted!r} for the {role}; "
                    f"{list_fields(fields)}",
                )
            )


def _check_some_row_is_fine(sample: Sample, options: InputOptions) -> None:
    first_problem = None
    for number, (place, value) in enumerate(sample.records):
        if isinstance(value, Unreadable):
            row = problem_row(number, value.problem, place)
        else:
            row = build_row(number, value, place, options)
        if row.problem is None:
            return
        first_problem = first_problem or row.problem
    count = len(sample.records)
    if count == 1:
        raise InputError(f"the only row that was looked at cannot be embedded: {first_problem}")
    raise InputError(
        f"none of the first {count} rows can be embedded, the first because: {first_problem}"
    )


def _in_file(name: str, problem: str) -> str:
    return f"{name}: {problem}" if name else problem
