"""Configurations as they are recorded in `tests/train/composed.yaml`."""

import pathlib
import re

from omegaconf import OmegaConf

from penspin_style.algo.registry import find_algorithm
from penspin_style.config import TrainConfig
from penspin_style.env.task import load_task
from penspin_style.system.plain_yaml import parse_mapping
from penspin_style.train.compose import compose_train, differences

PIN = re.compile(r"@[0-9a-f]{16}$")
FILE = pathlib.Path(__file__).parents[1] / "train" / "composed.yaml"


def saved(folder, *overrides):
    """The file that a run of these overrides leaves, and its text."""
    path, text = folder / "config.yaml", compose_train(overrides)[2]
    path.write_text(text)
    return path, text


def is_as_recorded(text, *overrides):
    """Compare a composed configuration with `composed.yaml`; task.observation is the task's."""
    cfg = OmegaConf.create(text)
    name = cfg.task_name
    plain = TrainConfig(task=load_task(name).Config(), algo=find_algorithm(cfg.algo.name).Config())
    expected = dict(leaves(OmegaConf.to_yaml(OmegaConf.structured(plain))))
    for line in (f"task={name}", " ".join(overrides)):
        expected |= RECORDED[line]
    return dict(leaves(text)) == {"task_name": name, **expected}


def leaves(text):
    """Yield the keys and values of a configuration, without what a task makes of its own."""
    for key, (value, _) in differences(text, "{}").items():
        if not key.startswith("task.observation") and value != "{}":
            found = parse_mapping(f"x: {value}")["x"]
            # which policy is shipped is no matter of the configuration
            yield key, PIN.sub("", found) if isinstance(found, str) else found


RECORDED = parse_mapping(FILE.read_text())
