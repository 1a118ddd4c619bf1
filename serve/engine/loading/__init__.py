"""Loading of adapters into the engine: packed copies, mapped files."""
