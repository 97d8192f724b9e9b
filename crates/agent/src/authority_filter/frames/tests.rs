use proptest::prelude::*;

use super::*;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn grpc_fields(authority: &[u8]) -> Fields {
    [
        (&b":method"[..], &b"POST"[..]),
        (b":scheme", b"http"),
        (b":path", b"/SpiffeWorkloadAPI/FetchX509SVID"),
        (b":authority", authority),
        (b"workload.spiffe.io", b"true"),
    ]
    .map(|(name, value)| (name.to_vec(), value.to_vec()))
    .to_vec()
}

fn encoded(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    fluke_hpack::Encoder::new().encode(fields.iter().map(|(n, v)| (&n[..], &v[..])))
}

fn opened() -> AuthorityFilter {
    let mut filter = AuthorityFilter::new();
    filter.push(PREFACE).unwrap();
    filter
}

/// The header lists in a filter's output, each with its flags, read with an independent decoder.
fn lists(mut bytes: &[u8]) -> Vec<(u8, Fields)> {
    let mut decoder = fluke_hpack::Decoder::new();
    let mut lists = Vec::new();
    let (mut block, mut first_flags) = (Vec::new(), 0);
    while !bytes.is_empty() {
        let header = Frame::read(&bytes[..9]);
        let payload = &bytes[9..9 + header.bytes];
        if header.kind == HEADERS {
            first_flags = header.flags;
        }
        if matches!(header.kind, HEADERS | CONTINUATION) {
            block.extend_from_slice(payload);
            if header.flags & END_HEADERS != 0 {
                lists.push((first_flags, decoder.decode(&block).unwrap()));
                block.clear();
            }
        }
        bytes = &bytes[9 + header.bytes..];
    }
    lists
}

#[test]
fn the_socket_path_that_grpc_core_sends_becomes_localhost() {
    let block = encoded(&grpc_fields(b"tmp%2Fs1"));
    let out = opened().push(&frame(HEADERS, END_HEADERS, 1, &block)).unwrap();
    assert_eq!(lists(&out), [(END_HEADERS, grpc_fields(b"localhost"))]);
}

#[test]
fn the_table_of_the_sender_is_followed_over_several_requests() {
    let mut encoder = fluke_hpack::Encoder::new();
    let mut filter = opened();
    for stream in [1, 3, 5] {
        let fields = grpc_fields(b"run%2Fagent.sock");
        let block = encoder.encode(fields.iter().map(|(n, v)| (&n[..], &v[..])));
        let out = filter.push(&frame(HEADERS, END_HEADERS, stream, &block)).unwrap();
        assert_eq!(lists(&out), [(END_HEADERS, grpc_fields(b"localhost"))]);
    }
}

#[test]
fn padding_priority_and_continuations_are_understood() {
    let block = encoded(&grpc_fields(b"x"));
    let (left, right) = block.split_at(7);
    let mut payload = vec![3, 0, 0, 0, 0, 16];
    payload.extend_from_slice(left);
    payload.extend_from_slice(&[0; 3]);
    let mut bytes = frame(HEADERS, PADDED | PRIORITY | END_STREAM, 1, &payload);
    bytes.extend(frame(CONTINUATION, 0, 1, &[]));
    bytes.extend(frame(CONTINUATION, END_HEADERS, 1, right));
    let out = opened().push(&bytes).unwrap();
    assert_eq!(lists(&out), [(END_STREAM | END_HEADERS, grpc_fields(b"localhost"))]);
}

#[test]
fn other_frames_pass_as_they_are_and_in_order() {
    let mut bytes = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
    bytes.extend(frame(0, 0, 1, &[7; 16 * 1024]));
    bytes.extend(frame(6, 0, 0, &[1; 8]));
    assert_eq!(opened().push(&bytes).unwrap(), bytes);
}

#[track_caller]
fn refused(bytes: &[u8], why: &FilterRefused) {
    let mut filter = opened();
    assert_eq!(filter.push(bytes).as_ref(), Err(why));
    assert!(filter.push(&frame(6, 0, 0, &[0; 8])).is_err(), "refused for good");
}

#[test]
fn hostile_frames_are_refused() {
    refused(&[0, 0x40, 1, 0, 0, 0, 0, 0, 1], &FilterRefused::LargeFrame { bytes: 16385 });
    refused(&frame(CONTINUATION, 4, 1, &[]), &FilterRefused::BrokenSequence { kind: 9 });
    refused(&frame(PUSH_PROMISE, 4, 1, &[0; 4]), &FilterRefused::MalformedFrame { kind: 5 });
    refused(&frame(HEADERS, PADDED | 4, 1, &[9, 0]), &FilterRefused::MalformedFrame { kind: 1 });
    refused(&frame(HEADERS, PADDED | 4, 1, &[]), &FilterRefused::MalformedFrame { kind: 1 });
    refused(&frame(HEADERS, PRIORITY | 4, 1, &[0; 4]), &FilterRefused::MalformedFrame { kind: 1 });
    refused(&frame(HEADERS, 4, 1, &[0x3f]), &FilterRefused::MalformedBlock);

    let mut other_stream = frame(HEADERS, 0, 1, &[]);
    other_stream.extend(frame(CONTINUATION, 4, 3, &[]));
    refused(&other_stream, &FilterRefused::BrokenSequence { kind: 9 });
    let mut between = frame(HEADERS, 0, 1, &[]);
    between.extend(frame(0, 0, 1, &[1]));
    refused(&between, &FilterRefused::BrokenSequence { kind: 0 });
}

#[test]
fn continuation_floods_are_refused() {
    let mut empty = frame(HEADERS, 0, 1, &[]);
    (0..=CONTINUATIONS_MAX).for_each(|_| empty.extend(frame(CONTINUATION, 0, 1, &[])));
    refused(&empty, &FilterRefused::ManyContinuations);
    let mut full = frame(HEADERS, 0, 1, &[0x82; 16 * 1024]);
    (0..4).for_each(|_| full.extend(frame(CONTINUATION, 0, 1, &[0x82; 16 * 1024])));
    refused(&full, &FilterRefused::LargeBlock);
}

#[test]
fn http1_is_refused_at_its_first_byte() {
    assert_eq!(AuthorityFilter::new().push(b"G"), Err(FilterRefused::NotHttp2));
    assert_eq!(AuthorityFilter::new().push(b"PRI * HTTP/1"), Err(FilterRefused::NotHttp2));
}

#[test]
fn a_list_that_grows_over_a_frame_is_split() {
    let mut fields = grpc_fields(b"x");
    fields.push((b"grpc-trace".to_vec(), vec![b'z'; 30_000]));
    let block = encoded(&fields);
    let (left, right) = block.split_at(16_000);
    let mut bytes = frame(HEADERS, 0, 1, left);
    bytes.extend(frame(CONTINUATION, END_HEADERS, 1, right));
    let out = opened().push(&bytes).unwrap();
    fields[3].1 = b"localhost".to_vec();
    assert_eq!(lists(&out), [(0, fields)]);
}

proptest! {
    #[test]
    fn never_panics_and_never_grows_without_bound(
        frames in prop::collection::vec((0..12_u8, any::<u8>(), 0..4_u32, prop::collection::vec(any::<u8>(), 0..300)), 0..12),
        cut in 1..50_usize,
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload)).collect();
        let mut filter = opened();
        for part in bytes.chunks(cut) {
            let Ok(out) = filter.push(part) else { break };
            prop_assert!(out.len() <= BLOCK_BYTES_MAX + hpack::LIST_BYTES_MAX);
            prop_assert!(filter.partial.len() <= FRAME_BYTES_MAX);
        }
    }

    #[test]
    fn never_panics_on_noise(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _refused_or_not = AuthorityFilter::new().push(&bytes);
        let _refused_or_not = opened().push(&bytes);
    }

    #[test]
    fn where_the_bytes_are_cut_does_not_matter(cut in 1..40_usize) {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &encoded(&grpc_fields(b"a%2Fb"))));
        bytes.extend(frame(0, END_STREAM, 1, &[0; 5]));
        let whole = AuthorityFilter::new().push(&bytes).unwrap();
        let mut filter = AuthorityFilter::new();
        let parts: Vec<u8> = bytes.chunks(cut).flat_map(|part| filter.push(part).unwrap()).collect();
        prop_assert_eq!(parts, whole);
    }
}
