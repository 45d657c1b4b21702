"""What `ray_workers` asks of Ray, in this process: actors are objects, and may be made to die."""

import contextlib
import types


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class ActorDiedError(RayError):
    pass


class Ref:
    """A call that is made once its result is asked for."""

    def __init__(self, call):
        self._call, self._found = call, None

    def value(self):
        if self._found is None:
            try:
                self._found = (self._call(), None)
            except RayError as error:
                self._found = (None, error)
            except Exception as error:
                self._found = (None, RayTaskError(error))
        value, error = self._found
        if error is not None:
            raise error
        return value


class Actor:
    def __init__(self, ray, made):
        self._ray, self._made, self.alive = ray, made, True

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=lambda *args: self._remote(name, args))

    def _remote(self, name, args):
        args = [a.value() if isinstance(a, Ref) else a for a in args]

        def call():
            if self.alive and self._ray.dies(self._made, name):
                self.alive = False
            if not self.alive:
                raise ActorDiedError("its process is gone")
            return self._ray.sent(name, getattr(self._made, name)(*args))

        ref = Ref(call)
        self._ray.order.append(ref)
        return ref


class RayDouble:
    """`dies(worker, method)` says whether a worker dies in a call, `sent` what comes of one."""

    exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self):
        self.dies = lambda worker, method: False
        self.sent = lambda method, value: value
        self.late = lambda ref: False
        self.order, self.actors, self.options_given = [], [], []

    def remote(self, kind):
        def options(**given):
            self.options_given.append(given)
            return types.SimpleNamespace(remote=lambda *args: self._started(kind(*args)))

        return types.SimpleNamespace(options=options)

    def _started(self, made):
        self.actors.append(Actor(self, made))
        return self.actors[-1]

    def put(self, value):
        return Ref(lambda: value)

    def get(self, ref):
        while self.order and ref in self.order:  # an actor's calls are made in their order
            earlier = self.order.pop(0)
            with contextlib.suppress(RayError):
                earlier.value()
            if earlier is ref:
                break
        return ref.value()

    def wait(self, refs, *, num_returns, timeout):
        there = [ref for ref in refs if not self.late(ref)]
        return there[:num_returns], [ref for ref in refs if ref not in there[:num_returns]]

    def kill(self, actor):
        actor.alive = False
