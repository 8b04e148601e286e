/** What the editor holds on a first visit: a file with something left to write at the cursor. */

const [before, after] = `"""A cache that forgets what was put in first."""

from collections import OrderedDict


class Cache:
    def __init__(self, size):
        self.size = size
        self._values = OrderedDict()

    def get(self, key, default=None):
        """The value of a key, or the default."""
        if key not in self._values:
            return default
        ¦

    def set(self, key, value):
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self.size:
            self._values.popitem(last=False)

    def __len__(self):
        return len(self._values)
`.split("¦");

export const SAMPLE = { text: before + after, at: before.length };
