"""Tests that share one server beside `live`: a package, so that it ends with the last of them."""
