"""The public interface is documented: every parameter, shapes of arrays, units of quantities, errors that are raised.

Public is what has no leading underscore, in a module of ``wdmoe_env``.
The code is read, not imported, so that adapters to libraries that are not installed are held to it too.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
API = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs/api").glob("*.md")))
NAMED = set(re.findall(r"^::: (\S+)$", API, flags=re.MULTILINE))

# Their functions are of one type, whose shapes stand in the module's docstring.
FAMILIES = ("wdmoe_env.policies.rules", "wdmoe_env.policies.related")

ARRAY = re.compile(r"\b(Float|Bool|NDArray|Tensor|Picture)\b")
NUMBER = re.compile(rf"{ARRAY.pattern}|\bfloat\b")
SHAPE = re.compile(r"\((\d|[A-Za-z],|[A-Z]\b|\d M|\.\.\.)[^()]*\)|any shape|[Ss]hape of|shape \(")
UNIT_IN_NAME = re.compile(r"_(s|ms|hz|db|m|mps|bits|flops|w|dbm_per_hz|per_ms)$")
PHYSICAL = re.compile(
    r"(latency|bandwidth|power|distance|position|speed|doppler|carrier|interval|payload|noise|loss)s?$"
)
UNIT = re.compile(r"\b(s|ms|Hz|dB|W|m|FLOPs?|FLOP/s|bits?|seconds?|milliseconds?|nats|shares?)\b")


def public(obj):
    """An object and what it holds, without imports and what begins with an underscore."""
    yield obj
    for member in obj.members.values():
        if not member.is_alias and not member.name.startswith("_"):
            yield from public(member)


def load(name):
    return griffe.load(name, search_paths=[ROOT], docstring_parser="google")


LIBRARY = load("wdmoe_env")
OBJECTS = list(public(LIBRARY))
CLASSES = [obj for obj in OBJECTS if obj.is_class]
# Those that are written; a dataclass' parameters are its fields, which are looked at as such.
CONSTRUCTORS = [
    cls.members[name]
    for cls in CLASSES
    for name in ("__init__", "__post_init__")
    if name in cls.members and not (name == "__init__" and "dataclass" in cls.labels)
]
FUNCTIONS = [obj for obj in OBJECTS if obj.is_function] + CONSTRUCTORS
# Fields of dataclasses, and properties.
FIELDS = [
    (cls, one) for cls in CLASSES for one in public(cls) if one.is_attribute and one.parent is cls and one.annotation
]


def owner(function):
    """Whose docstring documents a function: a constructor's is its class's."""
    return function.parent if function.name in ("__init__", "__post_init__") else function


def text(obj):
    return obj.docstring.value if obj.docstring else ""


def entries(obj, kind):
    """Descriptions by name in one section of a docstring, ``parameters`` or ``attributes``."""
    sections = obj.docstring.parsed if obj.docstring else []
    return {
        item.name.lstrip("*"): item.description
        for section in sections
        if section.kind.value == kind
        for item in section.value
    }


def returned(function):
    """What a docstring says of the result: its section, or all of it."""
    sections = function.docstring.parsed if function.docstring else []
    stated = [item.description for section in sections if section.kind.value == "returns" for item in section.value]
    return " ".join(stated) or text(function)


def parameters(function):
    """Annotations by name."""
    return {
        one.name.lstrip("*"): str(one.annotation or "")
        for one in function.parameters
        if one.name not in ("self", "cls")
    }


def is_array(annotation):
    return bool(ARRAY.search(annotation)) and "Callable" not in annotation


@cache
def functions_of(path):
    """Syntax trees of a file's functions by their first line."""
    nodes = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    return {min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]): node for node in nodes}


def raised(function):
    """Names of the errors that a function raises itself, and of the checks that raise for it."""
    waiting = list(functions_of(function.filepath)[function.lineno].body)
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call):
            yield ast.unparse(inner.exc.func).split(".")[-1]
        if isinstance(inner, ast.Call) and re.match(r"_?check_", name := ast.unparse(inner.func).split(".")[-1]):
            yield name
        waiting += ast.iter_child_nodes(inner)


def test_there_is_much_to_look_at():
    assert len(OBJECTS) > 500
    assert len(FUNCTIONS) > 200
    assert sum(bool(entries(function, "parameters")) for function in FUNCTIONS) > 80


def test_every_public_object_has_a_docstring():
    assert not [obj.path for obj in OBJECTS if not obj.is_attribute and not obj.docstring]


def test_every_module_stands_on_a_page():
    """By itself or in a package of which a page shows all modules; the one of ``WDMoEEnv`` by its members."""
    modules = {obj.path for obj in OBJECTS if obj.is_module and not obj.is_package}
    shown = {path for path in modules if {path, path.rpartition(".")[0]} & NAMED}
    assert modules - shown == {"wdmoe_env.env"}


def test_every_member_of_the_environment_stands_on_a_page():
    """One by one, since the class's own docstring is a page of the site."""
    members = {
        one.path for one in LIBRARY["env.WDMoEEnv"].members.values() if one.is_function or "property" in one.labels
    }
    named = {name for name in NAMED if name.startswith("wdmoe_env.env.")}
    assert named == {path for path in members if not path.split(".")[-1].startswith("_")}


def gaps(pairs):
    return [f"{place}: {what}" for place, what, documented in pairs if not documented]


def test_parameters():
    """An ``Args`` section names all and no others; more than three parameters need one, or a reference to another."""

    def pairs():
        for function in FUNCTIONS:
            names, documented = parameters(function), entries(owner(function), "parameters")
            reference = "see ``" in text(function)
            yield function.path, "Args", documented or reference or len(names) <= 3
            for name in set(names) ^ set(documented) if documented and function.name != "__post_init__" else ():
                yield function.path, name, False

    assert not gaps(pairs())


def test_shapes_of_parameters():
    """In the parameter's entry; without a section the docstring holds as many shapes as there are arrays."""

    def pairs():
        for function in FUNCTIONS:
            documented = entries(owner(function), "parameters")
            arrays = [name for name, annotation in parameters(function).items() if is_array(annotation)]
            if documented:
                yield from ((function.path, name, SHAPE.search(documented.get(name, ""))) for name in arrays)
            else:
                yield function.path, arrays, len([*SHAPE.finditer(text(owner(function)))]) >= len(arrays)

    assert not gaps(pairs())


def test_shapes_of_results():
    functions = [function for function in FUNCTIONS if is_array(str(function.returns or ""))]
    family = {name: SHAPE.search(text(LIBRARY[name.removeprefix("wdmoe_env.")])) for name in FAMILIES}
    assert not gaps(
        (function.path, "result", SHAPE.search(returned(function)) or family.get(function.parent.path))
        for function in functions
    )


def test_fields():
    """A dataclass documents every field; arrays have shapes."""

    def pairs():
        for cls, field in FIELDS:
            said = entries(cls, "attributes").get(field.name, "") + text(field)
            yield field.path, "entry", said or "dataclass" not in cls.labels
            yield field.path, "shape", SHAPE.search(said) or not is_array(str(field.annotation))

    assert not gaps(pairs())


def test_units():
    """A physical quantity has a unit in its name or in what is said of it."""

    def pairs():
        for function in FUNCTIONS:
            documented = entries(owner(function), "parameters")
            for name, annotation in parameters(function).items():
                yield function.path, name, annotation, documented.get(name, text(owner(function)))
            yield function.path, function.name, str(function.returns or ""), returned(function)
        for cls, field in FIELDS:
            yield (
                cls.path,
                field.name,
                str(field.annotation),
                entries(cls, "attributes").get(field.name, "") + text(field),
            )

    quantities = [pair for pair in pairs() if PHYSICAL.search(UNIT_IN_NAME.sub("", pair[1])) and NUMBER.search(pair[2])]
    assert len(quantities) > 50
    assert not gaps(
        (place, name, UNIT_IN_NAME.search(name) or UNIT.search(said)) for place, name, _, said in quantities
    )


def test_errors():
    """A docstring names each error that the function raises; for what a check raises, it has the section."""

    def pairs():
        for function in FUNCTIONS:
            documented = text(owner(function))
            for name in raised(function):
                pattern = "Raises:" if "check_" in name else rf"\b{name}\b"
                yield function.path, name, re.search(pattern, documented)

    assert not gaps(pairs())
