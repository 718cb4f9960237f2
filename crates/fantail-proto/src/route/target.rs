//! The sections after the first (spec 2.4): an address of an origin, and how to speak to it.

use super::{
    Address, Reason, Target,
    condition::{self, authority, filled, is_host, port},
    line::Section,
    workers,
};

/// Reads a target. What is wrong goes to `reasons`, and the target is then of no use.
pub(super) fn read(section: Section, reasons: &mut Vec<Reason>) -> Target {
    let mut target = Target::default();
    let test = section.value == "test";
    let zeromq = workers::is_address(&section.value);
    match address(section.value) {
        Ok(address) => target.address = address,
        Err(reason) => reasons.push(reason),
    }
    for (name, value) in section.parameters {
        let result = match KNOWN.iter().find(|known| **known == name) {
            Some(known) if test && *known != "sub" => Err(Reason::TestTakes(known)),
            Some(known) if zeromq && CONNECTING.contains(known) => Err(Reason::WorkersTake(known)),
            Some(known) if !zeromq && *known == "ipc_file_mode" => Err(Reason::OnlyWorkersTake(known)),
            _ => set(&mut target, name, value),
        };
        reasons.extend(result.err());
    }
    if target.client_cert.is_some() != target.client_key.is_some() {
        reasons.push(Reason::HalfIdentity);
    }
    target
}

/// Parameters of a target.
pub(super) const KNOWN: &[&str] = &[
    "ssl",
    "untrusted",
    "trust_connect_host",
    "insecure",
    "host",
    "sub",
    "client_cert",
    "client_key",
    "over_http",
    "one_event",
    "ipc_file_mode",
];

/// Parameters of a TLS connection of our own; of its own, a worker is told what it may.
const CONNECTING: &[&str] = &["client_cert", "client_key"];

fn address(value: String) -> Result<Address, Reason> {
    if value == "test" {
        return Ok(Address::Test);
    }
    if workers::is_address(&value) {
        return workers::read(value).map(Address::Workers);
    }
    let wanted = match value.rsplit_once(':') {
        None => "write HOST:PORT, [IPv6]:PORT, zhttp/SPEC, zhttpreq/SPEC or test",
        Some(_) if value.contains("://") => "write HOST:PORT without a scheme; TLS is the parameter ssl",
        Some((host, _)) if !is_host(host) => "the host is a name or an address, IPv6 in brackets",
        Some((host, number)) => match port(number) {
            Some(port) => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                return Ok(Address::Tcp(bare.to_owned(), port));
            }
            None => "the port is a number from 1 to 65535",
        },
    };
    Err(Reason::Target { value, wanted })
}

fn set(target: &mut Target, name: String, value: String) -> Result<(), Reason> {
    match name.as_str() {
        "ssl" => target.tls = true,
        "untrusted" => target.untrusted = true,
        "trust_connect_host" => target.trust_connect_host = true,
        "insecure" => target.insecure = true,
        "over_http" => target.over_http = true,
        "one_event" => target.one_event = true,
        "host" => target.host = Some(authority("host", value)?),
        "sub" => target.subs.push(filled("sub", value)?),
        "client_cert" => target.client_cert = Some(filled("client_cert", value)?),
        "client_key" => target.client_key = Some(filled("client_key", value)?),
        "ipc_file_mode" => target.ipc_file_mode = Some(workers::file_mode(value)?),
        _ => return Err(Reason::unknown(name, KNOWN, condition::KNOWN, "the condition")),
    }
    Ok(())
}
