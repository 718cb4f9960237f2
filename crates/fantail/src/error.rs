//! What a client sees when something went wrong: one function, by whose fault it was.
