"""`penspin eval`: evaluate a policy over fixed seeds."""

import argparse
import pathlib
import time

from penspin_style.cli.report import check_plotting, plot, print_evaluation
from penspin_style.cli.verb import output_file
from penspin_style.system.terminal import print_json
from penspin_style.train.compose import UsageError, nearest
from penspin_style.train.evaluate import blinded, evaluate
from penspin_style.train.load_policy import open_policy
from penspin_style.train.run import EXIT_OK


def run(args: argparse.Namespace) -> int:
    """Evaluate a policy, without the images that --blank names."""
    target = output_file("--plot", args.plot, ".png")
    if target is not None:
        check_plotting()
    source = open_policy(pathlib.Path(args.policy), args.overrides)
    began = time.perf_counter()
    act = source.act
    if args.blank:
        images = [i.name for i in source.card.inputs if i.is_image]
        if unknown := sorted(set(args.blank) - set(images)):
            what = f"such image{nearest(unknown[0], images)}" if images else "images"
            raise UsageError(f"--blank {unknown[0]}: the policy reads no {what}")
        act = blinded(act, args.blank)
    result = evaluate(source.env(args.episodes, args.seed), act, seed=args.seed)
    if args.json:
        score = source.task.score
        own = {"success": result.success(score), "success_once": result.success_rate}
        print_json({"policy": args.policy, "task": source.card.task, **own, **result.as_dict()})
    else:
        print_evaluation(source.card.task, result, time.perf_counter() - began, source.task.score)
    if target is not None:
        plot(target, source.card.task, result, source.cfg.task.control_dt)
    return EXIT_OK
