//! Grip-Sig: signing requests to origins and verifying those of trusted clients (spec 1.4).
