"""Which attributes of which classes a program reads, from its annotations alone: nothing is imported, nothing is run.

A type is a set of alternatives: ``("is", CLASS)`` an instance, ``("class", CLASS)`` the class itself, ``("of", TYPE)``
a container or an iterator, ``("gives", TYPE)`` something that is called. What cannot be told is the empty set, and an
attribute of it is no read: a field that is read only there counts as unread. A variable that holds two things in turn
has both types.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Type = frozenset[tuple[str, Any]]
UNKNOWN: Type = frozenset()
_PLAIN_WRAPPERS = {"Annotated", "Optional", "Final", "ClassVar"}
_SAME_AS_ARGUMENT = {"replace", "absolute", "copy", "deepcopy", "reversed", "sorted", "list", "tuple", "next", "iter"}
_CHECKS = {"__post_init__", "_fields_agree"}


@dataclass
class Class:
    """What is known of a class: bases, attributes by name, and where its methods stand."""

    name: str
    bases: list[str]
    attributes: dict[str, Type] = field(default_factory=dict)
    fields: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Read:
    """An attribute of a class, read in a function of another class (or of none)."""

    owner: str
    attribute: str
    inside: str | None
    function: str | None


class Program:
    """The classes and functions of some source files, and what is read in them."""

    def __init__(self, sources: Sequence[str], parents: Mapping[str, Sequence[str]] | None = None) -> None:
        """Read the program.

        Args:
            sources: the text of its files.
            parents: what classes inherit from besides what their own statement says (a class that is put together).
        """
        self.trees = [ast.parse(source) for source in sources]
        self.classes: dict[str, Class] = {}
        self.functions: dict[str, Type] = {}
        self.constants: dict[str, Type] = {}
        self.aliases: dict[str, ast.expr] = {}
        self.reads: set[Read] = set()
        self._lambdas: dict[ast.Lambda, list[Type]] = {}
        self._declare()
        for name, more in (parents or {}).items():
            if name in self.classes:
                self.classes[name].bases = list(dict.fromkeys([*self.classes[name].bases, *more]))
        for _ in range(2):  # attributes that are set from attributes that are set from arguments
            self.reads.clear()
            for tree in self.trees:
                self._scope(tree.body, {}, None, None)

    @classmethod
    def below(cls, folder: Path) -> Program:
        """The program in the Python files below a folder."""
        return cls([file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.py"))])

    def kin(self, name: str) -> set[str]:
        """A class and everything that it inherits from."""
        known = self.classes.get(name)
        return {name} | {parent for base in (known.bases if known else []) if base != name for parent in self.kin(base)}

    def fields_of(self, name: str) -> set[str]:
        """The fields of a settings class, inherited ones too."""
        known = [self.classes[parent] for parent in self.kin(name) if parent in self.classes]
        return {field for parent in known for field in parent.fields}

    def unread(self, settings: str) -> set[str]:
        """The fields of a settings class that nothing reads outside the class itself and outside settings' checks."""
        own = self.kin(settings)
        read = {
            read.attribute
            for read in self.reads
            if (read.owner in own or settings in self.kin(read.owner))
            and read.inside not in own
            and read.function not in _CHECKS
        }
        return self.fields_of(settings) - read

    # ------------------------------------------------------------------------------------------------- declarations

    def _declare(self) -> None:
        nodes = [node for tree in self.trees for node in ast.walk(tree)]
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                bases = [_last_name(base) for base in node.bases]
                self.classes[node.name] = Class(node.name, [base for base in bases if base])
        for tree in self.trees:
            for node in tree.body:
                if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                    self.aliases[node.targets[0].id] = node.value
        for tree in self.trees:
            for node in tree.body:
                if isinstance(node, ast.FunctionDef):
                    self.functions[node.name] = self._result(node)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    self.constants[node.target.id] = self.annotated(node.annotation)
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                self._declare_class(node)

    def _declare_class(self, node: ast.ClassDef) -> None:
        known = self.classes[node.name]
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                known.attributes[part.target.id] = self.annotated(part.annotation)
                known.fields.add(part.target.id)
            elif isinstance(part, ast.FunctionDef):
                decorators = {_last_name(decorator) for decorator in part.decorator_list}
                result = self._result(part, node.name)
                is_value = decorators & {"property", "cached_property"}
                known.attributes[part.name] = result if is_value else frozenset({("gives", result)})

    def _result(self, node: ast.FunctionDef, own: str | None = None) -> Type:
        """What a call of a function gives; a context manager gives what it yields."""
        result = self.annotated(node.returns, own)
        if any(_last_name(decorator) == "contextmanager" for decorator in node.decorator_list):
            return _elements(result)
        return result

    def annotated(self, node: ast.expr | None, own: str | None = None) -> Type:
        """The type that an annotation means."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.annotated(ast.parse(node.value, mode="eval").body, own)
        if isinstance(node, ast.BinOp):
            return self.annotated(node.left, own) | self.annotated(node.right, own)
        if isinstance(node, ast.Name | ast.Attribute):
            name = _last_name(node)
            if name == "Self" and own:
                return frozenset({("is", own)})
            if name in self.classes:
                return frozenset({("is", name)})
            alias = self.aliases.get(name)
            return self.annotated(alias, own) if isinstance(alias, ast.Subscript | ast.BinOp) else UNKNOWN
        if isinstance(node, ast.Subscript):
            return self._generic(node, own)
        return UNKNOWN

    def _generic(self, node: ast.Subscript, own: str | None) -> Type:
        name = _last_name(node.value)
        arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Literal":
            return UNKNOWN
        if name in _PLAIN_WRAPPERS:
            return self.annotated(arguments[0], own)
        if name in self.classes:
            return frozenset({("is", name)})
        if name == "type":
            return frozenset({("class", held) for kind, held in self.annotated(arguments[0], own) if kind == "is"})
        if name == "Callable":
            return frozenset({("gives", self.annotated(arguments[-1], own))})
        if name == "Union":
            return frozenset().union(*(self.annotated(part, own) for part in arguments))
        if name in ("Mapping", "dict", "defaultdict"):
            return frozenset({("of", self.annotated(arguments[-1], own))})
        held = frozenset[tuple[str, Any]]().union(*(self.annotated(part, own) for part in arguments))
        return frozenset({("of", held)}) if held else UNKNOWN

    # ------------------------------------------------------------------------------------------------------- reading

    def _scope(
        self, body: Sequence[ast.stmt], names: dict[str, Type], inside: str | None, function: str | None
    ) -> None:
        """Everything below some statements; ``names`` are the variables that they see."""
        names = dict(names)
        for _ in range(2):  # a name may be used above the line that says what it is
            for node in _own_nodes(body):
                self._bind(node, names, inside, function)
        for node in _own_nodes(body):
            if isinstance(node, ast.Call) or (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)):
                self._type(node, names, inside, function)
            elif isinstance(node, ast.ClassDef):
                self._scope(node.body, names, node.name, function)
            elif isinstance(node, ast.FunctionDef):
                self._scope(node.body, {**names, **self._arguments(node.args, inside)}, inside, node.name)
                self._scope([ast.Expr(part) for part in node.decorator_list], names, inside, function)
            elif isinstance(node, ast.Lambda):
                given = zip((argument.arg for argument in node.args.args), self._lambdas.get(node, []), strict=False)
                known = {**names, **self._arguments(node.args, None), **dict(given)}
                self._scope([ast.Expr(node.body)], known, inside, function)

    def _arguments(self, arguments: ast.arguments, inside: str | None) -> dict[str, Type]:
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        found = {argument.arg: self.annotated(argument.annotation, inside) for argument in every}
        if arguments.vararg:
            found[arguments.vararg.arg] = frozenset({("of", self.annotated(arguments.vararg.annotation, inside))})
        if inside:
            found |= {name: frozenset({("is", inside)}) for name in ("self",) if name in found}
            found |= {name: frozenset({("class", inside)}) for name in ("cls",) if name in found}
        return found

    def _bind(self, node: ast.AST, names: dict[str, Type], inside: str | None, function: str | None) -> None:
        def of(value: ast.expr) -> Type:
            return self._type(value, names, inside, function)

        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._give(target, of(node.value), names, inside, node.value, of)
        elif isinstance(node, ast.AnnAssign):
            self._give(node.target, self.annotated(node.annotation, inside), names, inside)
            self._annotate_lambdas(node, inside)
        elif isinstance(node, ast.NamedExpr):
            self._give(node.target, of(node.value), names, inside)
        elif isinstance(node, ast.For | ast.comprehension):
            self._give(node.target, _elements(of(node.iter)), names, inside)
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            self._give(node.optional_vars, of(node.context_expr), names, inside)
        elif isinstance(node, ast.FunctionDef):
            names.setdefault(node.name, frozenset({("gives", self._result(node))}))

    def _annotate_lambdas(self, node: ast.AnnAssign, inside: str | None) -> None:
        """The arguments of lambdas in a value that is annotated as (something that holds) a ``Callable``."""
        for part in ast.walk(node.annotation):
            if isinstance(part, ast.Subscript) and _last_name(part.value) == "Callable":
                taken = part.slice.elts[0] if isinstance(part.slice, ast.Tuple) else None
                types = [self.annotated(argument, inside) for argument in getattr(taken, "elts", [])]
                for found in ast.walk(node.value) if node.value else []:
                    if isinstance(found, ast.Lambda):
                        self._lambdas[found] = types

    def _give(
        self, target: ast.expr, value: Type, names: dict[str, Type], inside: str | None,
        source: ast.expr | None = None, of: Any = None,
    ) -> None:  # fmt: skip
        if isinstance(target, ast.Name):
            names[target.id] = names.get(target.id, UNKNOWN) | value
        elif isinstance(target, ast.Attribute) and _last_name(target.value) == "self" and inside in self.classes:
            known = self.classes[inside].attributes
            known[target.attr] = known.get(target.attr, UNKNOWN) | value
        elif isinstance(target, ast.Tuple):
            parts = source.elts if isinstance(source, ast.Tuple) and len(source.elts) == len(target.elts) else None
            for place, part in enumerate(target.elts):
                self._give(part, of(parts[place]) if parts and of else _elements(value) | value, names, inside)

    def _type(self, node: ast.expr, names: Mapping[str, Type], inside: str | None, function: str | None) -> Type:
        """The type of an expression; what it reads is noted."""

        def of(value: ast.expr) -> Type:
            return self._type(value, names, inside, function)

        if isinstance(node, ast.Name):
            if node.id in names:
                return names[node.id]
            if node.id in self.classes:
                return frozenset({("class", node.id)})
            if node.id in self.functions:
                return frozenset({("gives", self.functions[node.id])})
            return self.constants.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            return self._attribute(of(node.value), node.attr, inside, function)
        if isinstance(node, ast.Call):
            return self._call(node, of, inside, function)
        if isinstance(node, ast.IfExp):
            return of(node.body) | of(node.orelse)
        if isinstance(node, ast.BoolOp):
            return frozenset[tuple[str, Any]]().union(*map(of, node.values))
        if isinstance(node, ast.NamedExpr | ast.Starred):
            return of(node.value)
        if isinstance(node, ast.Subscript):
            return _elements(of(node.value))
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return frozenset({("of", frozenset[tuple[str, Any]]().union(*map(of, node.elts)))})
        if isinstance(node, ast.Dict):
            return frozenset({("of", frozenset[tuple[str, Any]]().union(*map(of, node.values)))})
        if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp):
            return frozenset({("of", of(node.elt))})
        if isinstance(node, ast.DictComp):
            return frozenset({("of", of(node.value))})
        return UNKNOWN

    def _attribute(self, value: Type, name: str, inside: str | None, function: str | None) -> Type:
        found: Type = UNKNOWN
        for kind, held in value:
            if kind == "of":
                found |= frozenset({("gives", value if name in ("copy", "values") else _pairs(value, name))})
            if kind in ("is", "class"):
                self.reads.add(Read(held, name, inside, function))
                found |= frozenset[tuple[str, Any]]().union(
                    *(self.classes[k].attributes.get(name, UNKNOWN) for k in self.kin(held) if k in self.classes)
                )
        return found

    def _call(self, node: ast.Call, of: Any, inside: str | None, function: str | None) -> Type:
        name = _last_name(node.func)
        if name == "getattr" and len(node.args) >= 2 and isinstance(node.args[1], ast.Constant):
            return self._attribute(of(node.args[0]), str(node.args[1].value), inside, function)
        if name == "cast" and node.args:
            return self.annotated(node.args[0], inside)
        if name in ("zip", "enumerate") and node.args:
            return frozenset({("of", frozenset[tuple[str, Any]]().union(*(_elements(of(part)) for part in node.args)))})
        if name in ("next", "iter") and node.args:
            return _elements(of(node.args[0])) if name == "next" else of(node.args[0])
        called = of(node.func)
        result = frozenset[tuple[str, Any]]().union(
            *(held for kind, held in called if kind == "gives"),
            frozenset({("is", held) for kind, held in called if kind == "class"}),
        )
        if not result and name in _SAME_AS_ARGUMENT and node.args:
            return of(node.args[0])
        return result


def _pairs(value: Type, name: str) -> Type:
    return frozenset({("of", _elements(value))}) if name == "items" else _elements(value)


def _elements(value: Type) -> Type:
    return frozenset[tuple[str, Any]]().union(*(held for kind, held in value if kind == "of"))


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call | ast.Subscript):
        return _last_name(node.func if isinstance(node, ast.Call) else node.value)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _own_nodes(body: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    """The nodes below some statements, without the insides of functions, classes and lambdas."""
    waiting: list[ast.AST] = list(reversed(body))
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef):
            waiting += [node.args]
        elif not isinstance(node, ast.ClassDef | ast.Lambda):
            waiting += reversed(list(ast.iter_child_nodes(node)))
