"""The language: annotations, the functions of `tile.*`, and the front end that turns a Python function into TILE."""
