"""What hooks may change on a pipeline, noted beforehand: to see what stays, and to take it away."""

from copy import copy
from typing import Any

from spectrum_bench.caching.peers import restore
from spectrum_bench.caching.session import denoisers

REGISTRY = ("hooks", "_hook_order", "_fn_refs")  # what diffusers' registry of a module holds


class Before:
    """Attributes of a pipeline, its class and its denoisers' modules, hooks included."""

    def __init__(self, pipe: Any):
        self.pipe = pipe
        modules = [module for each in denoisers(pipe).values() for module in each.modules()]
        self.modules = {module: (dict(vars(module)), dict(module._modules)) for module in modules}
        self.hooks = {m: (dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in self.modules}
        registries = [each for module in modules if (each := vars(module).get("_diffusers_hook")) is not None]
        self.registries = [(each, {name: copy(vars(each)[name]) for name in REGISTRY}) for each in registries]
        self.of_pipe, self.of_class = dict(vars(pipe)), dict(vars(type(pipe)))

    def left_behind(self) -> tuple[list[str], list[str]]:
        """What still acts, and the names of marks that do nothing."""
        active: list[str] = []
        marks: set[str] = set()
        for module, (attributes, children) in self.modules.items():
            name = type(module).__name__
            if list(module._modules.items()) != list(children.items()):
                active.append(f"other modules, or another order of them, in {name}")
            if (dict(module._forward_hooks), dict(module._forward_pre_hooks)) != self.hooks[module]:
                active.append(f"a hook on {name}")
            forward = vars(module).get("forward")
            original = getattr(forward, "__func__", None) is type(module).forward
            if forward is not attributes.get("forward") and not original:
                active.append(f"{name}.forward")
            registry = vars(module).get("_diffusers_hook")
            if registry is not None and registry.hooks:
                active.append(f"{', '.join(registry.hooks)} on {name}")
            marks |= vars(module).keys() - attributes.keys()
        if vars(type(self.pipe)).get("__call__") is not self.of_class.get("__call__"):
            active.append(f"{type(self.pipe).__name__}.__call__")
        marks |= (vars(self.pipe).keys() - self.of_pipe.keys()) | (vars(type(self.pipe)).keys() - self.of_class.keys())
        return active, sorted(marks)

    def restore(self) -> None:
        """Make everything as it was."""
        for module, (hooks, pre_hooks) in self.hooks.items():
            for now, then in ((module._forward_hooks, hooks), (module._forward_pre_hooks, pre_hooks)):
                now.clear()
                now.update(then)
        for registry, parts in self.registries:
            vars(registry).update({name: copy(part) for name, part in parts.items()}, _child_registries_cache=None)
        restore(self.modules)
        kind = type(self.pipe)
        for name in vars(kind).keys() - self.of_class.keys():
            delattr(kind, name)
        for name, value in self.of_class.items():
            if vars(kind).get(name) is not value:
                setattr(kind, name, value)
        for name in vars(self.pipe).keys() - self.of_pipe.keys():
            delattr(self.pipe, name)
        vars(self.pipe).update(self.of_pipe)
