//! What becomes of a request's headers on the way to the origin (spec 1.3, 1.9): which are removed,
//! which are ours alone to set, and how `X-Forwarded-For` is made. Never touches a URI or a target.
