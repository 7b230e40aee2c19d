"""A stand-in for the clients of tracking services, which notes what is asked of it."""

from types import ModuleType


class Client(ModuleType):
    """Looks like the module ``wandb`` or ``mlflow``; ``calls`` holds (function, arguments, keywords)."""

    def __init__(self):
        super().__init__("client")
        self.calls = []
        self.id = "run-1"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call

    def named(self, name):
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]
