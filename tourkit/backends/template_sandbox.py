"""Jinja's immutable sandbox with a budget: the environment of chat templates.

The generated code counts loops. Operators, filters and calls check what they are about to make. Nothing is computed
while a template is compiled.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, cast

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, markup_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, _PassArg

from tourkit.backends.template_budget import PLAIN_KINDS, POINTER, Budget, OverBudget

_CALL = 4  # steps: what a call costs beside an operator
_NUMBERS = {"center", "indent", "wordwrap", "batch", "slice", "round", "tojson", "urlize"}
_SHORT = {"wordwrap", "urlize", "xmlattr", "striptags", "pprint", "filesizeformat"}  # they can take quadratic time
_SHORT_TEXT, _SHORT_ARGUMENTS = 20_000, 1_000  # characters
_GROWTH = dict.fromkeys(
    ("e", "escape", "forceescape", "urlencode", "tojson"), 6
)  # of a text, when all of it is escaped
_LISTS = {"list", "reverse", "sort", "unique", "batch", "slice", "wordcount", "min", "max", "groupby", "dictsort"}
_PICKS = {"length", "count", "first", "last", "random", "default", "d", "items", "attr"}  # they make nothing
_PICKS |= {"map", "select", "reject", "selectattr", "rejectattr", "abs", "int", "float"}
_BREAKS = (" ", "\n", "\r", "\t")
# Tests that compare their values, or make texts of them.
_COMPARING = "== eq equalto != ne > gt greaterthan ge >= < lt lessthan <= le in lower upper".split()
_INTERNAL = {"_loop_vars", "_block_vars"}  # arguments that Jinja's generated code adds to each call


class _Generator(CodeGenerator):
    """Generate code that counts, and compute no constants while compiling."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802 - the names are Jinja's
        node.body.insert(0, nodes.ExprStmt(_code("environment.step()", node)))
        if node.test is not None:
            node.test = nodes.And(_code("environment.step()", node), node.test, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.join_texts(context.eval_ctx.autoescape, (")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802
        self.write("(")
        self._operand(node.expr, frame)
        for op in node.ops:
            self.visit(op, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:  # noqa: N802
        from jinja2.compiler import operators

        self.write(f" {operators[node.op]} ")
        self._operand(node.expr, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Const):
            super().visit_Getitem(node, frame)
            return
        if isinstance(node.arg, nodes.Slice):
            self.write("environment.whole(")
            self.visit(node.node, frame)
            self.write(")[")
            self.visit(node.arg, frame)
            self.write("]")
            return
        self.write("environment.getitem(")
        self.visit(node.node, frame)
        self.write(", ")
        self._operand(node.arg, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self.write("{")
        for item in node.items:
            self._operand(item.key, frame)
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("}")

    def _operand(self, node: nodes.Expr, frame: Frame) -> None:
        """Write a value that is compared or hashed. Lists that contain each other can take for ever."""
        if isinstance(node, nodes.Const):
            self.visit(node, frame)
            return
        self.write("environment.operand(")
        self.visit(node, frame)
        self.write(")")

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


def _code(text: str, near: nodes.Node) -> nodes.InternalName:
    """Return a node that is written as this Python expression."""
    made: nodes.InternalName = object.__new__(nodes.InternalName)  # Jinja's parser makes them in this way too
    nodes.Node.__init__(made, text, lineno=near.lineno)
    return made


class _Generation(Extension):
    """The tag `generation` of Hugging Face's renderer, which marks what the model wrote. Its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 - the name and the type are Jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment. A render needs a budget: `with sandbox.limited(budget): template.render(...)`."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        # The same settings as in Hugging Face's own renderer: templates are written for them.
        extensions = [loopcontrols, _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, autoescape=False, optimized=False)
        self._local = threading.local()
        self.finalize = self.written
        self.globals.pop("lipsum")
        self.filters = {name: self._limited_filter(name, filter_) for name, filter_ in self.filters.items()}
        for name in _COMPARING:
            self.tests[name] = self._limited_test(cast(Callable[..., Any], self.tests[name]))

    def add_filter(self, name: str, filter_: Callable[..., Any]) -> None:
        self.filters[name] = self._limited_filter(name, filter_)

    @contextmanager
    def limited(self, budget: Budget) -> Iterator[None]:
        """Take everything that this thread renders from this budget."""
        self._local.budget = budget
        try:
            yield
        finally:
            del self._local.budget

    @property
    def budget(self) -> Budget:
        budget: Budget = self._local.budget
        return budget

    # --- called by generated code ---------------------------------------------------------------------------------

    def step(self) -> bool:
        self._local.budget.step()
        return True

    def operand(self, value: Any) -> Any:
        """Return a value that is about to be compared or hashed. Raises OverBudget."""
        if type(value) not in PLAIN_KINDS:
            self._local.budget.weigh(value)
        return value

    def whole(self, value: Any) -> Any:
        """Return a value that is about to be sliced, which copies it. Raises OverBudget."""
        if isinstance(value, Sized):
            self.budget.make(len(value) if isinstance(value, str) else len(value) * POINTER)
        return value

    def written(self, value: Any) -> Any:
        """Return a value that is about to become text. Raises OverBudget."""
        if type(value) not in PLAIN_KINDS:
            if isinstance(value, Namespace):
                raise OverBudget("a namespace as text")
            self.budget.weigh(value)
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        return "".join(self._counted(pieces))

    def _counted(self, pieces: Iterable[str]) -> Iterator[str]:
        budget, size = self.budget, 0
        for piece in pieces:
            size += len(piece)
            if size > budget.largest:
                raise OverBudget("too much text")
            yield piece
        budget.make(size)

    def join_texts(self, escape: bool, values: tuple[Any, ...]) -> str:
        self.budget.make(self.budget.weigh(values))
        return markup_join(values) if escape else "".join(map(str, values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget: Budget = self._local.budget
        if operator == "+":
            if type(left) is str and type(right) is str:  # the most frequent case by far
                budget.make(len(left) + len(right))
                return left + right
            budget.add(left, right)
        elif operator == "*":
            budget.multiply(left, right)
        elif operator == "**":
            budget.power(left, right)
        else:
            budget.places(left, right)
        return self.binop_table[operator](left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = __self.budget
        budget.step(_CALL)
        for value in (*args, *(value for key, value in kwargs.items() if key not in _INTERNAL)):
            budget.weigh(value)
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
        owner = getattr(method, "__self__", None)
        if __obj is dict:
            budget.make_list(sum(len(value) for value in args if isinstance(value, Sized)))
        if isinstance(owner, str | bytes | int) and not isinstance(owner, bool):
            args = __self._method(owner, method.__name__, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def _method(self, owner: Any, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """Check a call of a method of a text, of bytes or of a number. Return the arguments to call it with."""
        budget = self.budget
        values = (*args, *(value for key, value in named.items() if key not in _INTERNAL))
        if name in ("format", "format_map"):
            budget.format(owner, list(values))
            return args
        for value in values:
            budget.number(value)
        size = budget.weigh(owner)
        if name == "join" and args:
            args = (self._items(args[0]), *args[1:])
            size = budget.weigh(args[0]) + size * len(args[0])
        elif name == "replace" and len(args) > 1:
            size += owner.count(args[0]) * len(args[1])
        elif name == "expandtabs":
            size += owner.count("\t" if isinstance(owner, str) else b"\t") * max([8, *map(int, values)])
        elif name == "translate":
            size *= max(1, budget.weigh(list(values)))
        elif name in ("rfind", "rindex", "rsplit", "rpartition"):  # Python searches backwards in quadratic time
            budget.work(size * budget.weigh(list(values)))
            budget.make_list(size // 2 if name == "rsplit" else 1)
        elif name in ("split", "splitlines"):
            breaks = [values[0]] if values and isinstance(values[0], type(owner)) and values[0] else _BREAKS
            budget.make_list(1 + sum(map(str(owner).count, map(str, breaks))))
        budget.make(size + sum(value for value in values if isinstance(value, int)) if name != "translate" else size)
        return args

    def _items(self, values: Iterable[Any]) -> list[Any]:
        """Return the items of any iterable as a list, under the budget."""
        found = []
        for value in values:
            self.step()
            found.append(value)
        return found

    # --- filters and tests ----------------------------------------------------------------------------------------

    def _limited_filter(self, name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
        before = 0 if _PassArg.from_obj(filter_) is None else 1  # Jinja's own argument before the value

        @functools.wraps(filter_)
        def limited(*args: Any, **named: Any) -> Any:
            first, value, rest = args[:before], args[before], args[before + 1 :]
            value = self._filtered(name, value, rest, named)
            return filter_(*first, value, *rest, **named)

        return limited

    def _filtered(self, name: str, value: Any, rest: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Check what a filter is about to do. Return the value to filter."""
        budget = self.budget
        budget.step()
        if isinstance(value, Namespace) and name not in ("attr", "default", "d"):
            raise OverBudget("a namespace as text")
        if type(value) is str and not rest and not named and name not in _SHORT and name not in _LISTS:
            if name not in _PICKS:
                budget.make(len(value) * _GROWTH.get(name, 1))
            return value
        others = [*rest, *named.values()]
        for other in others:
            budget.weigh(other)
            if name in _NUMBERS:
                budget.number(other)
        if name in ("join", "sum"):
            value = self._items(value)
        size = budget.weigh(value)
        if name in _SHORT and (size > _SHORT_TEXT or budget.weigh(others) > _SHORT_ARGUMENTS):
            raise OverBudget(f"too long a text for {name}")
        if name in _PICKS:
            return value
        if name in _LISTS:
            budget.make_list(len(value) if isinstance(value, Sized) else 0)
        else:
            budget.make(size * _GROWTH.get(name, 1) + self._growth(name, value, others, size))
        return value

    def _growth(self, name: str, value: Any, others: list[Any], size: int) -> int:
        """Return how many characters a filter adds at most."""
        budget = self.budget
        widths = [
            len(other) if isinstance(other, str) else int(other) for other in others if isinstance(other, str | int)
        ]
        if name == "replace" and len(others) > 1:
            return str(value).count(str(others[0])) * len(str(others[1]))
        if name == "format":
            budget.places(value, others)
        elif name == "join":
            return len(value) * max(widths, default=0)
        elif name == "indent":
            return (str(value).count("\n") + 1) * max(widths, default=4)
        elif name == "sum":
            budget.work(len(value) * size)
        elif name == "tojson":
            return size * max(widths, default=0)
        elif name in _NUMBERS:
            return max(widths, default=0)
        return 0

    def _limited_test(self, test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        def limited(*args: Any, **named: Any) -> Any:
            self.budget.step()
            for arg in (*args, *named.values()):
                if isinstance(arg, list | tuple | dict):
                    self.budget.weigh(arg)
            return test(*args, **named)

        return limited
