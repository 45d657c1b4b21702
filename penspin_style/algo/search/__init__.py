"""Search by sampling: plans are rolled out in many worlds at once, and the best ones are kept.

    config.py            `search.KEY` of the command line
    knots.py             what a plan is, and how new ones are drawn
    plans.py             what plans lead to, in worlds that begin alike
    beam.py              beam search
    receding_horizon.py  predictive sampling and MPPI
    trajectory.py        one search, from a seed to a trajectory that replays bit for bit

A task needs nothing for it: its rewards and its ends are enough. It can help with `limbs`,
`search_cost` and `propose`.
"""
