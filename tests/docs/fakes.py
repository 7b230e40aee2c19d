"""Stand-ins for the clients of trackers. They have only the names that the recipes use, and note what arrives.

`runs` of each is a dict by id of a `Run`.
"""

from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace


class Run:
    """The data that arrived in a run of a tracker: points by order, parameters, and how it ended each time."""

    def __init__(self, id):
        self.id, self.points, self.params, self.statuses = id, [], {}, []

    def log(self, values, step):
        self.points.append((step, dict(values)))

    @property
    def names(self):
        return {name for _, values in self.points for name in values}


class Client(ModuleType):
    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # Other libraries look whether the client is installed.
        self.runs = {}

    def opened(self, id):
        id = id or f"{self.__name__}-{len(self.runs)}"
        self.run = self.runs.setdefault(id, Run(id))
        return self.run


class Wandb(Client):
    """Refuses, like wandb, the functions it had before `init`."""

    def __init__(self):
        super().__init__("wandb")
        self.log, self.config = self.refuse, SimpleNamespace(update=self.refuse)
        self.preempting = False

    def refuse(self, *args, **kwargs):
        raise RuntimeError("You must call wandb.init() before wandb.log()")

    def init(self, id=None, resume=None, **options):
        assert resume == "allow"
        run = self.opened(id)
        self.log, self.config = run.log, SimpleNamespace(update=run.params.update)
        run.mark_preempting = lambda: setattr(self, "preempting", True)
        return run

    def finish(self, exit_code):
        self.run.statuses.append("finished" if not exit_code else "interrupted" if self.preempting else "failed")
        self.preempting = False
        self.log = self.refuse


class Mlflow(Client):
    def __init__(self):
        super().__init__("mlflow")

    def set_experiment(self, name):
        self.experiment = name

    def start_run(self, run_id=None):
        run = self.opened(run_id)
        return SimpleNamespace(
            info=SimpleNamespace(run_id=run.id), data=SimpleNamespace(metrics=dict.fromkeys(run.names))
        )

    def MlflowClient(self):
        return self

    def get_metric_history(self, run_id, name):
        return [SimpleNamespace(step=step) for step, values in self.runs[run_id].points if name in values]

    def log_metrics(self, values, step):
        assert not any("@" in name for name in values)
        (self.run if "run" in vars(self) else self.opened(None)).log(values, step)

    def log_params(self, values):
        self.run.params.update(values)

    def end_run(self, status):
        names = {"FINISHED": "finished", "KILLED": "interrupted", "FAILED": "failed"}
        self.run.statuses.append(names[status])


class Comet(Client):
    def __init__(self):
        super().__init__("comet_ml")

    def start(self, experiment_key=None, **options):
        run = self.opened(experiment_key)
        run.get_key = lambda: run.id
        run.log_metrics, run.log_parameters = run.log, run.params.update
        run.log_other = lambda name, value: run.statuses.append(value)
        run.end = lambda: delattr(self, "run")
        return run

    def get_running_experiment(self):
        return self.run


class Aim(Client):
    def __init__(self):
        super().__init__("aim")

    def Run(self, run_hash=None, **options):
        run = self.opened(run_hash)

        class AimRun:
            hash, track, close = run.id, staticmethod(run.log), staticmethod(lambda: None)

            def set(self, key, values):
                run.params.update(values)

            def __setitem__(self, key, value):
                assert key == "status"
                run.statuses.append(value)

        return AimRun()


def clients():
    return {"wandb": Wandb(), "mlflow": Mlflow(), "comet_ml": Comet(), "aim": Aim()}
