//! The head of a response that Fantail writes itself, past hyper: status line, headers,
//! `Content-Length`. Refuses nothing: what comes in is already valid.
