//! Whether a subscriber gets an item (spec section 6: `skip-self`, `skip-users`, `require-sub`).
//! Decisions only; filters that change content are not here.
