"""Named calls of the ops, a module for each: shapes, options, memory layouts. All tests of kernels share them."""
