"""The room of real robots: drivers, replay, collection and fine-tuning. It imports no torch."""

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)
