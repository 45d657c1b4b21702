"""Statistics of recorded values, of one episode and of all, as datasets carry them along.

min, max, mean, std (of the population), count and the quantiles q01 q10 q50 q90 q99.
"""

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_KEPT = 50_000  # rows

Stats = dict[str, np.ndarray]


class NumberSummary:
    """Of numbers (n, ..., k): over all axes but the last, so that every statistic is (k,).

    count is n. The quantiles over all episodes are exact up to 50,000 rows; beyond, they are those
    of evenly spaced rows. The other statistics are exact.
    """

    def __init__(self) -> None:
        self._count = self._rows = 0
        self._mean = self._squares = np.zeros(1)
        self._low, self._high = np.array([np.inf]), np.array([-np.inf])
        self._kept: list[np.ndarray] = []
        self._stride = 1

    def add(self, values: np.ndarray) -> Stats:
        """Take the values of one more episode and return their own statistics."""
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        n, mean = len(rows), rows.mean(0)
        squares = np.square(rows - mean).sum(0)
        self._keep(rows)
        # Chan, Golub, LeVeque 1983: moments of two parts make those of the whole
        total, away = self._rows + n, mean - self._mean
        self._squares = self._squares + squares + away**2 * self._rows * n / total
        self._mean = self._mean + away * n / total
        self._low, self._high = (
            np.minimum(self._low, rows.min(0)),
            np.maximum(self._high, rows.max(0)),
        )
        self._rows, self._count = total, self._count + len(values)
        moments = (rows.min(0), rows.max(0), mean, np.sqrt(squares / n))
        return _stats(*moments, len(values), rows)

    def total(self) -> Stats:
        """Return the statistics of all episodes."""
        std = np.sqrt(self._squares / self._rows)
        kept = np.concatenate(self._kept)
        return _stats(self._low, self._high, self._mean, std, self._count, kept)

    def _keep(self, rows: np.ndarray) -> None:
        self._kept.append(rows[-self._rows % self._stride :: self._stride])
        while sum(map(len, self._kept)) > _KEPT:
            self._kept = [np.concatenate(self._kept)[::2]]
            self._stride *= 2


def _stats(
    low: np.ndarray,
    high: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    count: int,
    rows: np.ndarray,
) -> Stats:
    stats = {"min": low, "max": high, "mean": mean, "std": std, "count": np.array([count])}
    levels = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return stats | dict(zip(QUANTILES, levels, strict=True))


class ImageSummary:
    """Of images (n, height, width, channels) uint8: per channel, in [0, 1], (channels, 1, 1).

    count is n. Exact: how often each channel has each of its 256 values is counted.
    """

    def __init__(self, channels: int = 3) -> None:
        self._count, self._seen = 0, np.zeros((channels, 256), np.int64)
        self._before = 0, self._seen.copy()

    def add(self, images: np.ndarray) -> None:
        """Take some images of an episode."""
        channels = np.moveaxis(images, -1, 0).reshape(len(self._seen), -1)
        self._seen += np.stack([np.bincount(values, minlength=256) for values in channels])
        self._count += len(images)

    def end(self) -> Stats:
        """Return the statistics of the images since the last call."""
        count, seen = self._before
        self._before = self._count, self._seen.copy()
        return _of_counts(self._seen - seen, self._count - count)

    def total(self) -> Stats:
        """Return the statistics of all images."""
        return _of_counts(self._seen, self._count)


def _of_counts(seen: np.ndarray, count: int) -> Stats:
    """Return the statistics of values 0..255 seen so many times, (channels, 256)."""
    levels, total = np.arange(256) / 255, seen.sum(1)
    mean = seen @ levels / total
    variance = (seen * np.square(levels - mean[:, None])).sum(1) / total
    stats = {
        "min": levels[(seen > 0).argmax(1)],
        "max": levels[255 - (seen[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt(variance),
    }
    up_to = seen.cumsum(1)
    for name, q in QUANTILES.items():
        at = (total - 1) * q  # numpy's linear rule: between the ranks on both sides
        below, above = (
            levels[(up_to <= rank[:, None]).sum(1)] for rank in (np.floor(at), np.ceil(at))
        )
        stats[name] = below + (above - below) * (at % 1)
    shaped = {name: value.reshape(-1, 1, 1) for name, value in stats.items()}
    return shaped | {"count": np.array([count])}
