//! For operators: the control port with `/metrics`, `/healthz` and `/readyz`.
