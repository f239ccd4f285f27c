"""One section of params.yaml as a frozen, checked model."""

from pathlib import Path
from typing import Any, TypeVar, get_args

import pydantic
import yaml

from stages.errors import BadInput, nearest


class Settings(pydantic.BaseModel):
    """Base of every section: unknown keys are errors, values never change after reading."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


S = TypeVar("S", bound=pydantic.BaseModel)


def read(params: Path, section: str, model: type[S]) -> S:
    """The section of `params` at a dotted path, as `model`.

    Raises BadInput, in one sentence that names the nearest valid key, when the file, the section or a key in it
    is missing, unknown or of the wrong type.
    """
    if not params.is_file():
        raise BadInput(f"Expected a parameter file at {params}, but there is none; run from the repository root.")
    try:
        node: Any = yaml.safe_load(params.read_text())
    except yaml.YAMLError as error:
        raise BadInput(f"{params} is not valid YAML: {' '.join(str(error).split())}.") from error
    walked = ""
    for key in section.split("."):
        if not isinstance(node, dict) or key not in node:
            valid = node if isinstance(node, dict) else ()
            raise BadInput(
                f"{params} has no section {section!r}: {walked or 'it'} lacks {key!r}; {nearest(key, valid)}"
            )
        node, walked = node[key], f"{walked}.{key}".lstrip(".")
    return parse(node, section, model)


def parse(node: object, section: str, model: type[S]) -> S:
    """`node` checked as `model`; `section` names it in the error."""
    try:
        return model.model_validate(node)
    except pydantic.ValidationError as error:
        raise BadInput(f"{section}: " + "; ".join(_sentence(e, model, section) for e in error.errors())) from error


def _sentence(error: Any, model: type[pydantic.BaseModel], section: str) -> str:
    where = ".".join(str(part) for part in error["loc"]) or section
    if error["type"] == "extra_forbidden":
        valid = _fields_at(model, error["loc"][:-1])
        return f"unknown key {where!r}, {nearest(str(error['loc'][-1]), valid)}"
    if error["type"] == "missing":
        return f"the key {where!r} is missing, add it"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}, got {error['input']!r}"


def _fields_at(model: type[pydantic.BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The valid keys of the (possibly nested) section at `loc`, for the hint."""
    for part in loc:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        choices = get_args(annotation) or (annotation,)  # a section that may be left out is `Section | None`
        models = [each for each in choices if isinstance(each, type) and issubclass(each, pydantic.BaseModel)]
        if len(models) != 1:
            return []
        model = models[0]
    return list(model.model_fields)
