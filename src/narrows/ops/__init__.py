"""The arithmetic of the network, one op a file. What stands here is the specification: it runs on any device and
dtype and differentiates; faster implementations must agree with it."""
