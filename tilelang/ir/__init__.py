"""The intermediate representation: data types, operations, text, verification and the interpreter."""
