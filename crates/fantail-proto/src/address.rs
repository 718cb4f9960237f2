//! Which addresses a server must not be sent to by strangers: its own, those of its network, and what embeds them.
//! Decides about addresses only, after names were resolved.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is not for strangers (IANA's special-purpose registries).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Range {
    Unspecified,
    Loopback,
    /// RFC 1918, RFC 4193.
    Private,
    /// With the metadata services of clouds, 169.254.169.254.
    LinkLocal,
    /// Shared by the customers of a carrier (RFC 6598).
    Carrier,
    Multicast,
    Broadcast,
    Documentation,
    Benchmarking,
    /// Not, or not yet, or no longer for use.
    Reserved,
    /// In a block that the operator has named.
    Denied,
}

impl Range {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::Carrier => "shared",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Documentation => "documentation",
            Self::Benchmarking => "benchmarking",
            Self::Reserved => "reserved",
            Self::Denied => "denied",
        }
    }
}

/// A block of addresses: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Block {
    base: IpAddr,
    bits: u8,
}

impl Block {
    /// `None` when it is no block, or has bits behind its prefix: those would be a slip.
    pub fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/').map_or((text, None), |(base, bits)| (base, Some(bits)));
        let written: IpAddr = base.parse().ok()?;
        // A mapped block is one of IPv4.
        let base = written.to_canonical();
        let most = if written.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(digits) if digits.len() <= 3 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|bits| *bits <= most)?
            }
            Some(_) => return None,
        };
        let bits = if written == base { bits } else { u8::checked_sub(bits, 96)? };
        let block = Self { base, bits };
        let rest = u128::MAX.checked_shr(u32::from(block.bits) + block.offset()).unwrap_or(0);
        (wide(base) & rest == 0).then_some(block)
    }

    /// An IPv4 address is looked for in blocks of IPv4 only, and one that is mapped into IPv6 is IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if ip.is_ipv4() != self.base.is_ipv4() {
            return false;
        }
        let shift = 128 - u32::from(self.bits) - self.offset();
        let prefix = |ip| wide(ip).checked_shr(shift).unwrap_or(0);
        prefix(ip) == prefix(self.base)
    }

    /// Bits in front of an IPv4 address when it is written into 128.
    fn offset(&self) -> u32 {
        if self.base.is_ipv4() { 96 } else { 0 }
    }
}

fn wide(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Why this address is not for strangers, unless it is in one of the `allowed` blocks.
pub fn forbidden(ip: IpAddr, allowed: &[Block]) -> Option<Range> {
    if allowed.iter().any(|block| block.contains(ip)) {
        return None;
    }
    special(ip)
}

/// The special range that an address, or one that it embeds, is in.
pub fn special(ip: IpAddr) -> Option<Range> {
    match ip {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6).or_else(|| embedded(v6).into_iter().flatten().find_map(special_v4)),
    }
}

fn special_v4(v4: Ipv4Addr) -> Option<Range> {
    Some(match v4.octets() {
        [0, 0, 0, 0] => Range::Unspecified,
        [0, ..] => Range::Reserved,
        [127, ..] => Range::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Range::Private,
        // 168.63.129.16 is where machines of Azure are told about themselves, wherever they are.
        [169, 254, ..] | [168, 63, 129, 16] => Range::LinkLocal,
        [100, 64..=127, ..] => Range::Carrier,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Range::Documentation,
        // 192.88.99.0/24 was the relays of 6to4.
        [192, 0, 0, _] | [192, 88, 99, _] => Range::Reserved,
        [198, 18..=19, ..] => Range::Benchmarking,
        [224..=239, ..] => Range::Multicast,
        [255, 255, 255, 255] => Range::Broadcast,
        [240..=255, ..] => Range::Reserved,
        _ => return None,
    })
}

fn special_v6(v6: Ipv6Addr) -> Option<Range> {
    Some(match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Range::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Range::Loopback,
        [0xfc00..=0xfdff, ..] => Range::Private,
        // fec0::/10 was the private range before fc00::/7.
        [0xfe80..=0xfebf, ..] => Range::LinkLocal,
        [0xfec0..=0xfeff, ..] => Range::Private,
        [0xff00..=0xffff, ..] => Range::Multicast,
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Range::Documentation,
        [0x2001, 2, 0, ..] => Range::Benchmarking,
        // Addresses that a network translates to IPv4 by rules of its own (RFC 8215).
        [0x64, 0xff9b, 1, ..] => Range::Private,
        // What embeds an IPv4 address is judged by that; the rest of these blocks is nobody's.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => return None,
        // Teredo.
        [0x2001, 0, ..] => return None,
        // 2001::/23 is of protocols, but for what is listed here as global: AMT, AS112, DRIP, ORCHIDv2.
        [0x2001, 3, ..] | [0x2001, 4, 0x112, ..] | [0x2001, 0x20..=0x3f, ..] => return None,
        [0x2001, 0..=0x1ff, ..] => Range::Reserved,
        [0x2000..=0x3fff, ..] => return None,
        // Global unicast is 2000::/3, all else is not given to anybody.
        _ => Range::Reserved,
    })
}

/// The IPv4 addresses inside a mapped, compatible, translated, 6to4, NAT64, Teredo (its server, and its client
/// behind a mask) or ISATAP address.
fn embedded(v6: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => [v4(high, low), None],
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [v4(high, low), None],
        [0x2002, high, low, ..] => [v4(high, low), None],
        [0x2001, 0, high, low, _, _, h, l] => [v4(high, low), v4(!h, !l)],
        [.., 0 | 0x200, 0x5efe, high, low] => [v4(high, low), None],
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(ip: &str) -> Option<&'static str> {
        special(ip.parse().unwrap()).map(Range::name)
    }

    const SPECIAL: [(&str, &str); 51] = [
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "reserved"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.0.1", "private"),
        ("169.254.169.254", "link-local"),
        ("168.63.129.16", "link-local"),
        ("100.64.0.1", "shared"),
        ("100.127.255.255", "shared"),
        ("100.100.100.200", "shared"),
        ("192.0.0.192", "reserved"),
        ("192.0.2.1", "documentation"),
        ("198.51.100.1", "documentation"),
        ("203.0.113.1", "documentation"),
        ("192.88.99.1", "reserved"),
        ("198.18.0.1", "benchmarking"),
        ("198.19.255.255", "benchmarking"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::2", "reserved"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.1.1.1", "private"),
        ("::ffff:0:169.254.169.254", "reserved"),
        ("::127.0.0.1", "loopback"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("64:ff9b:1::1", "private"),
        ("2002:7f00:1::", "loopback"),
        ("2002:a00:1::1", "private"),
        ("2001:0:7f00:1::", "loopback"),
        ("2001:0:808:808:0:0:80ff:fffe", "loopback"),
        ("2606:4700::5efe:c0a8:1", "private"),
        ("fc00::1", "private"),
        ("fd00:ec2::254", "private"),
        ("fe80::1", "link-local"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "documentation"),
        ("3fff:1::1", "documentation"),
        ("2001:2::1", "benchmarking"),
        ("2001:10::1", "reserved"),
        ("100::1", "reserved"),
        ("5f00::1", "reserved"),
        ("4000::1", "reserved"),
    ];

    #[test]
    fn what_is_not_for_strangers() {
        for (ip, expected) in SPECIAL {
            assert_eq!(range(ip), Some(expected), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "8.8.8.8",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "169.253.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450:4001:800::200e",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            "2001:4860:4860::8888",
        ] {
            assert_eq!(range(ip), None, "{ip}");
        }
    }

    #[test]
    fn blocks() {
        let inside = |block: &str, ip: &str| Block::parse(block).unwrap().contains(ip.parse().unwrap());
        assert!(inside("127.0.0.0/8", "127.1.2.3") && inside("127.0.0.0/8", "::ffff:127.0.0.1"));
        assert!(!inside("127.0.0.0/8", "128.0.0.1") && !inside("127.0.0.0/8", "::7f00:1"));
        assert!(inside("fd00::/8", "fd12::1") && !inside("fd00::/8", "fe80::1"));
        assert!(inside("::ffff:10.0.0.0/104", "10.1.2.3") && !inside("::ffff:10.0.0.0/104", "11.0.0.0"));
        assert!(inside("::1", "::1") && !inside("10.0.0.1", "10.0.0.2"));
        assert!(inside("0.0.0.0/0", "1.2.3.4") && !inside("0.0.0.0/0", "::1") && inside("::/0", "::1"));
        for bad in
            ["", "x", "127.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8"]
        {
            assert_eq!(Block::parse(bad), None, "{bad}");
        }
        let blocks = [Block::parse("127.0.0.0/8").unwrap()];
        assert_eq!(forbidden("127.0.0.1".parse().unwrap(), &blocks), None);
        assert_eq!(forbidden("10.0.0.1".parse().unwrap(), &blocks), Some(Range::Private));
    }

    proptest! {
        #[test]
        fn an_embedded_address_is_judged_as_itself(v4: Ipv4Addr) {
            let [a, b, c, d] = v4.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            for v6 in [
                v4.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !high, !low),
            ] {
                prop_assert_eq!(special(IpAddr::V6(v6)), special(IpAddr::V4(v4)), "{}", v6);
            }
        }

        #[test]
        fn a_block_contains_its_base_and_any_text_is_harmless(ip: IpAddr, text in "\\PC{0,30}") {
            prop_assert!(Block::parse(&ip.to_string()).unwrap().contains(ip));
            prop_assert!(Block::parse(&text).is_none_or(|block| block.contains(block.base)));
        }
    }
}
