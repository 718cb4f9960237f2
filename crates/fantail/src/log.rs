//! Log lines and access lines, as text or JSON, to standard output.
