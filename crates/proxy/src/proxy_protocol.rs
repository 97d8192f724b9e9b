//! The PROXY protocol, version 2: what a load balancer says of a connection before the connection says anything itself.
//!
//! It tells an address, which serves detection and limits, and no identity. It is read from load balancers that are named,
//! and from nobody else, so that nobody else can say where they are. Version 1, a line of text, is refused.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest header that is read, its first 16 bytes included. Load balancers' extensions take some hundred bytes.
pub const PROXY_HEADER_BYTES_MAX: usize = 2048;
/// Extensions in one header.
const EXTENSIONS_MAX: usize = 64;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const FIXED_BYTES: usize = 16;
const VERSION_2: u8 = 0x20;
const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;
const FAMILY_UNSPECIFIED: u8 = 0;
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;
const FAMILY_UNIX: u8 = 3;
const STREAM: u8 = 1;
/// Of the range that the specification leaves to private use: the SPIFFE ID that the peer proved, as text.
const EXTENSION_PEER: u8 = 0xe0;

/// What a header says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is of the load balancer itself: it looks whether we live.
    Itself,
    /// It is of somebody whose address has no place here, such as a Unix socket.
    Somebody,
    /// It comes from this address.
    From(SocketAddr),
}

/// Why bytes are not a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Something else, such as TLS.
    #[error("the connection does not begin with a header of the PROXY protocol")]
    NotOne,
    /// The line of text.
    #[error(
        "the header is of version 1 of the PROXY protocol, expected version 2: set the load balancer to `send-proxy-v2`, or what it calls so"
    )]
    Version1,
    /// A later version.
    #[error("the header is of version {0} of the PROXY protocol, expected 2")]
    Version(u8),
    /// Neither `LOCAL` nor `PROXY`.
    #[error("the header has the command {0}, expected 0 or 1")]
    Command(u8),
    /// Datagrams, or a family that nobody has defined.
    #[error(
        "the header is of a connection of kind {0:#04x}, expected a stream of IPv4, IPv6 or Unix"
    )]
    Kind(u8),
    /// Over the bound.
    #[error("a header of {bytes} bytes is over the limit of {PROXY_HEADER_BYTES_MAX}")]
    Long {
        /// How many.
        bytes: usize,
    },
    /// It ends before its addresses or its extensions do, or has too many of these.
    #[error("the header ends in the middle, or has more than {EXTENSIONS_MAX} extensions")]
    Torn,
}

/// Why no header came.
#[derive(Debug, thiserror::Error)]
pub enum NoHeader {
    /// What came is none.
    #[error(transparent)]
    Bad(#[from] BadHeader),
    /// The connection broke.
    #[error("the connection ended in its header: {0}")]
    Broken(io::Error),
}

/// Reads one header from the beginning of `bytes`: what it says, and how many bytes it took. `None` when there is more to come.
///
/// # Errors
/// When what came so far is the beginning of no header.
pub fn parse(bytes: &[u8]) -> Result<Option<(Told, usize)>, BadHeader> {
    let Some(fixed) = bytes.get(..FIXED_BYTES) else {
        return begins(bytes).map(|()| None);
    };
    let whole = length(fixed)?;
    let Some(rest) = bytes.get(FIXED_BYTES..whole) else { return Ok(None) };
    Ok(Some((told(fixed, rest)?, whole)))
}

/// Reads one header, and not a byte more.
///
/// # Errors
/// When it is none, or does not come whole.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Told, NoHeader> {
    let mut fixed = [0; FIXED_BYTES];
    let mut have = 0;
    while have < FIXED_BYTES {
        let read = stream.read(&mut fixed[have..]).await.map_err(NoHeader::Broken)?;
        if read == 0 {
            return Err(NoHeader::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        have += read;
        // At once, so that who speaks TLS or version 1 is not waited for.
        begins(&fixed[..have])?;
    }
    let mut rest = vec![0; length(&fixed)? - FIXED_BYTES];
    stream.read_exact(&mut rest).await.map_err(NoHeader::Broken)?;
    Ok(told(&fixed, &rest)?)
}

/// Whether a header may begin so.
fn begins(bytes: &[u8]) -> Result<(), BadHeader> {
    let signature = bytes.len().min(SIGNATURE.len());
    if bytes[..signature] == SIGNATURE[..signature] {
        return Ok(());
    }
    let line = bytes.len().min(6);
    if 0 < line && bytes[..line] == b"PROXY "[..line] {
        return Err(BadHeader::Version1);
    }
    Err(BadHeader::NotOne)
}

/// How long the header is that begins so.
fn length(fixed: &[u8]) -> Result<usize, BadHeader> {
    begins(fixed)?;
    let version = fixed[12] & 0xf0;
    if version != VERSION_2 {
        return Err(BadHeader::Version(version >> 4));
    }
    let bytes = FIXED_BYTES + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if PROXY_HEADER_BYTES_MAX < bytes {
        return Err(BadHeader::Long { bytes });
    }
    Ok(bytes)
}

fn told(fixed: &[u8], rest: &[u8]) -> Result<Told, BadHeader> {
    let (command, kind) = (fixed[12] & 0x0f, fixed[13]);
    match command {
        // What else it says is to be left alone (section 2.2 of the specification).
        COMMAND_LOCAL => return Ok(Told::Itself),
        COMMAND_PROXY => {}
        other => return Err(BadHeader::Command(other)),
    }
    let (family, transport) = (kind >> 4, kind & 0x0f);
    let (address, extensions) = match (family, transport) {
        (FAMILY_UNSPECIFIED, _) => return Ok(Told::Somebody),
        (FAMILY_IPV4, STREAM) => {
            let (addresses, rest) = rest.split_at_checked(12).ok_or(BadHeader::Torn)?;
            let octets: [u8; 4] = addresses[..4].try_into().map_err(|_short| BadHeader::Torn)?;
            (Told::From(socket(Ipv4Addr::from(octets).into(), &addresses[8..10])), rest)
        }
        (FAMILY_IPV6, STREAM) => {
            let (addresses, rest) = rest.split_at_checked(36).ok_or(BadHeader::Torn)?;
            let octets: [u8; 16] = addresses[..16].try_into().map_err(|_short| BadHeader::Torn)?;
            (Told::From(socket(Ipv6Addr::from(octets).into(), &addresses[32..34])), rest)
        }
        (FAMILY_UNIX, STREAM) => {
            let (_, rest) = rest.split_at_checked(216).ok_or(BadHeader::Torn)?;
            (Told::Somebody, rest)
        }
        _ => return Err(BadHeader::Kind(kind)),
    };
    skip(extensions)?;
    Ok(address)
}

fn socket(address: IpAddr, port: &[u8]) -> SocketAddr {
    SocketAddr::new(address, u16::from_be_bytes([port[0], port[1]]))
}

/// Looks whether extensions are whole, and forgets them: nothing that they say is believed or passed on.
fn skip(mut rest: &[u8]) -> Result<(), BadHeader> {
    for _ in 0..EXTENSIONS_MAX {
        let [_kind, high, low, after @ ..] = rest else {
            return if rest.is_empty() { Ok(()) } else { Err(BadHeader::Torn) };
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        (_, rest) = after.split_at_checked(length).ok_or(BadHeader::Torn)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(BadHeader::Torn) }
}

/// The header for a program that asks from where its caller came, and which door it came to. It names the caller's SPIFFE ID in
/// an extension of ours, 0xE0.
///
/// Whether a program may believe it depends on who can reach the program: nobody but the proxy should.
pub fn header(from: SocketAddr, to: SocketAddr, peer: &str) -> Vec<u8> {
    let mut rest = Vec::with_capacity(64 + peer.len());
    let kind = match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            rest.extend(from.octets());
            rest.extend(to.octets());
            FAMILY_IPV4 << 4 | STREAM
        }
        (from, to) => {
            rest.extend(mapped(from).octets());
            rest.extend(mapped(to).octets());
            FAMILY_IPV6 << 4 | STREAM
        }
    };
    rest.extend(from.port().to_be_bytes());
    rest.extend(to.port().to_be_bytes());
    // A SPIFFE ID has at most 2048 bytes.
    if let Ok(length) = u16::try_from(peer.len()) {
        rest.push(EXTENSION_PEER);
        rest.extend(length.to_be_bytes());
        rest.extend(peer.as_bytes());
    }
    let length = u16::try_from(rest.len()).unwrap_or(0);
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([VERSION_2 | COMMAND_PROXY, kind]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(&rest[..usize::from(length)]);
    bytes
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(command: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, kind], &length, rest].concat()
    }

    fn ipv4(extensions: &[u8]) -> Vec<u8> {
        let addresses = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0x20, 0xfb];
        bytes(0x21, 0x11, &[&addresses, extensions].concat())
    }

    #[track_caller]
    fn says(header: &[u8], expected: Told) {
        assert_eq!(parse(header), Ok(Some((expected, header.len()))));
        // What follows is not touched.
        let more = [header, &[22, 3, 1]].concat();
        assert_eq!(parse(&more), Ok(Some((expected, header.len()))));
        for length in 0..header.len() {
            assert_eq!(parse(&header[..length]), Ok(None), "the first {length} bytes");
        }
    }

    #[track_caller]
    fn refused(header: &[u8], expected: BadHeader) {
        assert_eq!(parse(header), Err(expected));
    }

    #[test]
    fn an_address_is_read_and_nothing_else() {
        says(&ipv4(&[]), Told::From("192.0.2.7:4660".parse().unwrap()));
        let mut six = [0; 36];
        six[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        six[32..34].copy_from_slice(&443_u16.to_be_bytes());
        says(&bytes(0x21, 0x21, &six), Told::From("[2001:db8::7]:443".parse().unwrap()));
        says(&bytes(0x21, 0x31, &[0; 216]), Told::Somebody);
        says(&bytes(0x21, 0x00, &[]), Told::Somebody);
        says(&bytes(0x20, 0x00, &[]), Told::Itself);
        // Of itself it may say what it likes.
        says(&bytes(0x20, 0x11, &[9; 12]), Told::Itself);
        let extensions = [&[0x01, 0, 2][..], b"h2", &[0xe0, 0, 4], b"evil", &[4, 0, 0]].concat();
        says(&ipv4(&extensions), Told::From("192.0.2.7:4660".parse().unwrap()));
    }

    #[test]
    fn version_1_is_refused_with_a_sentence_as_soon_as_it_shows() {
        refused(b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 8443\r\n", BadHeader::Version1);
        refused(b"P", BadHeader::Version1);
        assert!(BadHeader::Version1.to_string().contains("send-proxy-v2"));
    }

    #[test]
    fn what_is_no_header_is_refused_at_its_first_wrong_byte() {
        refused(&[22], BadHeader::NotOne);
        refused(b"GET / HTTP/1.1\r\n\r\n", BadHeader::NotOne);
        refused(b"\r\n\r\n\0\r\nQUIT\r", BadHeader::NotOne);
        refused(&bytes(0x11, 0x11, &[0; 12]), BadHeader::Version(1));
        refused(&bytes(0x31, 0x11, &[0; 12]), BadHeader::Version(3));
        refused(&bytes(0x22, 0x11, &[0; 12]), BadHeader::Command(2));
        refused(&bytes(0x21, 0x12, &[0; 12]), BadHeader::Kind(0x12));
        refused(&bytes(0x21, 0x41, &[0; 12]), BadHeader::Kind(0x41));
    }

    #[test]
    fn sizes_from_outside_are_bounded_and_have_to_fit() {
        refused(&bytes(0x21, 0x11, &[0; 11]), BadHeader::Torn);
        refused(&bytes(0x21, 0x21, &[0; 35]), BadHeader::Torn);
        refused(&bytes(0x21, 0x31, &[0; 215]), BadHeader::Torn);
        for torn in [&[1][..], &[1, 0], &[1, 0, 1], &[1, 255, 255, 0]] {
            refused(&ipv4(torn), BadHeader::Torn);
        }
        refused(&ipv4(&[4, 0, 0].repeat(EXTENSIONS_MAX + 1)), BadHeader::Torn);
        says(
            &ipv4(&[4, 0, 0].repeat(EXTENSIONS_MAX)),
            Told::From("192.0.2.7:4660".parse().unwrap()),
        );
        let mut long = bytes(0x21, 0x11, &[]);
        (long[14], long[15]) = (0xff, 0xff);
        refused(&long, BadHeader::Long { bytes: 65_535 + FIXED_BYTES });
    }

    #[test]
    fn what_we_say_is_what_we_read() {
        for (from, to) in [
            ("192.0.2.7:4660", "10.0.0.1:8443"),
            ("[2001:db8::7]:1", "[::1]:2"),
            ("192.0.2.7:4660", "[::1]:2"),
        ] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let header = header(from, to, "spiffe://shop.example/web");
            let Ok(Some((Told::From(told), length))) = parse(&header) else { panic!("{header:?}") };
            assert_eq!((told.ip().to_canonical(), told.port()), (from.ip(), from.port()));
            assert_eq!(length, header.len());
            assert!(header.ends_with(b"\xe0\0\x19spiffe://shop.example/web"));
        }
    }

    #[tokio::test]
    async fn reading_takes_the_header_and_leaves_what_follows() {
        let sent = [&ipv4(&[4, 0, 1, 9])[..], b"hello"].concat();
        let mut stream = &sent[..];
        let told = read(&mut stream).await.unwrap();
        assert_eq!(told, Told::From("192.0.2.7:4660".parse().unwrap()));
        assert_eq!(stream, b"hello");
        let mut short = &sent[..20];
        assert!(matches!(read(&mut short).await, Err(NoHeader::Broken(_))));
        let mut other = &b"PROXY TCP4"[..];
        assert!(matches!(read(&mut other).await, Err(NoHeader::Bad(BadHeader::Version1))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_take_more_than_there_are(
            rest in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
            command in 0x1e..0x33_u8, kind in proptest::num::u8::ANY,
        ) {
            for bytes in [rest.clone(), bytes(command, kind, &rest)] {
                if let Ok(Some((_, taken))) = parse(&bytes) {
                    proptest::prop_assert!(taken <= bytes.len() && taken <= PROXY_HEADER_BYTES_MAX);
                }
            }
        }
    }
}
