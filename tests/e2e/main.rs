//! End-to-end tests of the binary `latch`, a file for each behaviour.
