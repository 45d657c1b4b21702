"""viser's server, as far as a viewer uses it."""

import contextlib
import types


class _Handle:
    """A thing on the page; a button is pressed by `press`."""

    def __init__(self, value=None, **given):
        self.value = value
        self.__dict__.update(given)

    def on_click(self, function):
        self.press = lambda: function(None)


class Page:
    """An empty page, in place of `viser.ViserServer`."""

    def __init__(self, host, port, verbose):
        print("a greeting of viser's")
        self.handles, self.meshes, self.port = {}, {}, port
        self.gui = self.scene = self
        self.initial_camera = types.SimpleNamespace()
        self.stop = self.reset = lambda: None

    def get_port(self):
        return self.port

    @contextlib.contextmanager
    def atomic(self):
        yield

    def set_up_direction(self, direction):
        assert direction == "+z"

    def configure_default_lights(self, enabled, cast_shadow):
        assert enabled and not cast_shadow

    def configure_environment_map(self, hdri):
        assert hdri is None

    def add_light_hemisphere(self, name, **given):
        assert given["intensity"] > 0

    def add_batched_meshes_simple(self, name, **given):
        self.meshes[name] = _Handle(**given)
        return self.meshes[name]

    def _add(self, label, value=None, **given):
        self.handles[label] = _Handle(value, **given)
        return self.handles[label]

    def add_checkbox(self, label, initial_value):
        return self._add(label, initial_value)

    def add_button(self, label):
        return self._add(label)

    def add_slider(self, label, min, max, step, initial_value):
        return self._add(label, initial_value)

    def add_dropdown(self, label, options, initial_value):
        return self._add(label, initial_value, options=options)

    def add_markdown(self, content):
        return self._add("figures", content=content)

    def add_uplot(self, data, series, **_):
        assert len(data) == len(series)
        return self._add("plot", data=data)

    def add_image(self, image, label):
        return self._add(label, image=image)
