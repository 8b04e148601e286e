"""The tests are a package, so that they share helpers as ``from tests.draws import draws``."""
