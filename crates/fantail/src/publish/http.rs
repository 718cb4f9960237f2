//! `POST /publish/` and the realms' own (spec 5.2).
