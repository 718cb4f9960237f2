//! Is this HTTP/1 request strictly well-formed (RFC 9112), and where does it end? A push parser over
//! raw bytes that stands before hyper and lets nothing ambiguous through. Never builds a request.
