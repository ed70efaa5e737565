"""Building THREAD code: what every backend's lowering uses."""
