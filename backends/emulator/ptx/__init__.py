"""An interpreter of the PTX that NVRTC makes of emitted text: it checks the prelude that a GPU uses."""
