//! What an attacker tries against keys, certificates, requests and bundles.

use std::time::Duration;

use crate::support::{Realm, now};
use countersign_identity::{Code, KeyId};
use countersign_pki::{
    BadKey, Bundle, Bundles, Certificate, CsrRefused, DnsName, KeyKind, PrivateKey, ProvenKey,
    PublicKey, Refused, Role, check_leaf, make_csr, open_csr, verify, verify_pinned,
};

fn key() -> PrivateKey {
    PrivateKey::generate(KeyKind::Ed25519).unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, Refused>) -> Code {
    result.unwrap_err().code
}

#[tokio::test]
async fn no_changed_bit_in_leaf_or_issuer_is_accepted() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let chain = realm.chain("/orders", &key()).await;
    let bundles = realm.bundles();
    for position in 0..2 {
        let good = chain.ders();
        for bit in 0..good[position].len() * 8 {
            let mut changed = good[position].to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mut ders = good.clone();
            ders[position] = &changed;
            let result = verify(&ders, &bundles, Role::Server, now());
            assert!(result.is_err(), "bit {bit} of certificate {position} changed: {result:?}");
        }
    }
}

#[tokio::test]
async fn a_request_is_taken_for_no_other_key_than_the_one_that_signed_it() {
    let (mine, victim) = (key(), key());
    let csr = make_csr(&mine).unwrap();
    let at = csr.windows(44).position(|part| part == mine.public().spki()).unwrap();
    let mut forged = csr.clone();
    forged[at..at + 44].copy_from_slice(victim.public().spki());
    assert_eq!(open_csr(&forged), Err(CsrRefused::Signature));
    assert_eq!(open_csr(&csr).unwrap().public(), mine.public());
    // A second request behind the first is not looked at, it is refused.
    let twice = [csr, make_csr(&victim).unwrap()].concat();
    assert!(matches!(open_csr(&twice), Err(CsrRefused::Malformed(_))));
}

#[test]
fn a_statement_proves_only_the_key_that_signed_it() {
    let (mine, victim) = (key(), key());
    let signature = mine.sign(b"renew").unwrap();
    assert!(ProvenKey::by_statement(mine.public(), b"renew", &signature).is_ok());
    assert!(ProvenKey::by_statement(victim.public(), b"renew", &signature).is_err());
    assert!(ProvenKey::by_statement(mine.public(), b"renew!", &signature).is_err());
    assert!(ProvenKey::by_statement(mine.public(), b"renew", &[]).is_err());
}

#[test]
fn a_request_without_a_valid_signature_or_over_8_kib_is_refused() {
    let mut csr = make_csr(&key()).unwrap();
    *csr.last_mut().unwrap() ^= 1;
    assert_eq!(open_csr(&csr).unwrap_err().code(), Code::BadPossession);
    assert_eq!(open_csr(&[0x30; 8193]).unwrap_err().code(), Code::TooLarge);
    assert_eq!(open_csr(&[]).unwrap_err().code(), Code::NotUnderstood);
}

#[test]
fn keys_of_other_kinds_and_other_encodings_of_ours_are_refused() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/keys");
    let read = |name: &str| std::fs::read(folder.join(format!("{name}.spki.der"))).unwrap();
    for name in ["p384", "rsa2048"] {
        assert!(PublicKey::from_spki(&read(name)).is_ok(), "{name}");
    }
    for name in ["p521", "secp256k1", "rsa1024", "ed448", "p256_explicit"] {
        assert!(matches!(PublicKey::from_spki(&read(name)), Err(BadKey::Weak(_))), "{name}");
    }
    let compressed = PublicKey::from_spki(&read("p256_compressed"));
    assert!(matches!(compressed, Err(BadKey::Malformed(_))));
    let mut off_curve = read("p256");
    assert!(PublicKey::from_spki(&off_curve).is_ok());
    *off_curve.last_mut().unwrap() ^= 1;
    assert!(matches!(PublicKey::from_spki(&off_curve), Err(BadKey::Malformed(_))));
    let trailing = [read("p256"), vec![0]].concat();
    assert!(matches!(PublicKey::from_spki(&trailing), Err(BadKey::Malformed(_))));
}

/// What `openssl` makes of these options, as a `SubjectPublicKeyInfo` and as PKCS#8.
fn openssl_rsa(options: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let run = |arguments: &[&str], input: Option<&std::path::Path>| {
        let mut command = std::process::Command::new("openssl");
        command.args(arguments);
        if let Some(path) = input {
            command.arg("-in").arg(path);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let mut make = vec!["genpkey", "-algorithm", "RSA", "-outform", "DER"];
    make.extend(options.iter().flat_map(|option| ["-pkeyopt", option]));
    let pkcs8 = run(&make, None);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &pkcs8).unwrap();
    let read = ["pkey", "-inform", "DER", "-pubout", "-outform", "DER"];
    (run(&read, Some(file.path())), pkcs8)
}

#[test]
fn rsa_keys_of_other_sizes_and_exponents_are_refused_also_when_their_holder_proves_them() {
    for options in [
        ["rsa_keygen_bits:1024", "rsa_keygen_pubexp:65537"],
        ["rsa_keygen_bits:2047", "rsa_keygen_pubexp:65537"],
        ["rsa_keygen_bits:2056", "rsa_keygen_pubexp:65537"],
        ["rsa_keygen_bits:2048", "rsa_keygen_pubexp:3"],
        ["rsa_keygen_bits:2048", "rsa_keygen_pubexp:65539"],
        ["rsa_keygen_bits:2048", "rsa_keygen_pubexp:4294967311"],
    ] {
        let (spki, pkcs8) = openssl_rsa(&options);
        let refused = PublicKey::from_spki(&spki);
        assert!(matches!(refused, Err(BadKey::Weak(_))), "{options:?}: {refused:?}");
        assert!(PrivateKey::from_pkcs8(&pkcs8).is_err(), "{options:?}");
    }
}

/// An RSA key's `SubjectPublicKeyInfo` with another exponent in place of 65537.
fn with_exponent(exponent: &[u8]) -> Vec<u8> {
    let key = PrivateKey::generate(KeyKind::Rsa2048).unwrap();
    let spki = key.public().spki();
    let modulus = &spki[spki.len() - 5 - 257..spki.len() - 5];
    let tlv = |tag: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82, length[0], length[1]], content].concat()
    };
    let short = |content: &[u8]| [&[0x02, u8::try_from(content.len()).unwrap()], content].concat();
    let key = tlv(0x30, &[tlv(0x02, modulus), short(exponent)].concat());
    let algorithm = &spki[4..19];
    tlv(0x30, &[algorithm, &tlv(0x03, &[&[0][..], &key].concat())].concat())
}

#[test]
fn an_exponent_with_which_anybody_signs_is_refused() {
    assert!(PublicKey::from_spki(&with_exponent(&[1, 0, 1])).is_ok());
    let exponents: [&[u8]; 7] =
        [&[0], &[1], &[2], &[3], &[1, 0, 2], &[0xff, 0xff], &[1, 0, 0, 0, 0, 0, 0, 0, 1]];
    for exponent in exponents {
        assert!(PublicKey::from_spki(&with_exponent(exponent)).is_err(), "{exponent:?}");
    }
}

#[test]
fn a_request_that_is_signed_by_another_algorithm_than_its_keys_own_is_refused() {
    let identifiers: [&[u8]; 5] = [
        &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
        &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
        &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70],
        // With SHA-256, SHA-1, MD5 and no digest.
        &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 5, 0],
        &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05, 5, 0],
    ];
    for kind in KeyKind::ALL {
        let csr = make_csr(&PrivateKey::generate(kind).unwrap()).unwrap();
        assert!(open_csr(&csr).is_ok(), "{kind}");
        let own = identifiers.iter().filter_map(|identifier| {
            let at = csr.windows(identifier.len()).rposition(|part| part == *identifier)?;
            Some((at, identifier.len()))
        });
        // The last that stands there is the request's; the one before, of a key, looks alike for Ed25519.
        let (at, length) = own.max().unwrap();
        for other in identifiers.iter().filter(|other| ***other != csr[at..at + length]) {
            let outer = if csr[1] < 0x80 { 2 } else { 2 + usize::from(csr[1] & 0x7f) };
            let inner = [&csr[outer..at], other, &csr[at + length..]].concat();
            let confused = match u16::try_from(inner.len()).unwrap().to_be_bytes() {
                [0, short @ 0..0x80] => [&[0x30, short][..], &inner].concat(),
                [0, one] => [&[0x30, 0x81, one][..], &inner].concat(),
                [high, low] => [&[0x30, 0x82, high, low][..], &inner].concat(),
            };
            let refused = open_csr(&confused).unwrap_err();
            assert_eq!(refused, CsrRefused::Algorithm, "{kind} as {other:02x?}");
        }
    }
}

#[test]
fn a_private_key_is_read_as_what_it_says_that_it_is_and_as_nothing_else() {
    let keys = KeyKind::ALL.map(|kind| PrivateKey::generate(kind).unwrap());
    for key in &keys {
        let again = PrivateKey::from_pkcs8(key.pkcs8()).unwrap();
        assert_eq!(again.public(), key.public());
        let signature = again.sign(b"statement").unwrap();
        for other in &keys {
            let verified = other.public().verify(b"statement", &signature).is_ok();
            assert_eq!(verified, other.public() == key.public());
        }
    }
    // The inside of one kind under the name of another.
    let [p256, p384, ..] = &keys;
    let mut confused = p384.pkcs8().to_vec();
    let curve = confused.windows(7).position(|part| part == [6, 5, 0x2b, 0x81, 4, 0, 0x22]);
    assert!(PrivateKey::from_pkcs8(&confused).is_ok());
    confused[curve.unwrap() + 6] = 0x23;
    assert!(PrivateKey::from_pkcs8(&confused).is_err());
    let (begin, end) = p256.pkcs8().split_at(40);
    assert!(PrivateKey::from_pkcs8(&[begin, &p384.pkcs8()[40..]].concat()).is_err());
    assert!(PrivateKey::from_pkcs8(&[&p384.pkcs8()[..40], end].concat()).is_err());
}

#[test]
fn edwards_keys_that_anybody_can_sign_for_are_refused() {
    let spki = |y: [u8; 32]| {
        let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        [prefix.as_slice(), &y].concat()
    };
    let small = |first: u8, rest: u8, last: u8| {
        let mut y = [rest; 32];
        (y[0], y[31]) = (first, last);
        y
    };
    for y in [
        small(0, 0, 0),
        small(0, 0, 0x80),
        small(1, 0, 0),
        small(0xec, 0xff, 0x7f),
        small(0xec, 0xff, 0xff),
    ] {
        assert!(matches!(PublicKey::from_spki(&spki(y)), Err(BadKey::Weak(_))), "{y:02x?}");
    }
    for y in [small(0xed, 0xff, 0x7f), small(0xee, 0xff, 0xff), small(0xff, 0xff, 0xff)] {
        assert!(matches!(PublicKey::from_spki(&spki(y)), Err(BadKey::Malformed(_))), "{y:02x?}");
    }
}

#[test]
fn an_unknown_kind_of_key_is_none_of_ours() {
    for kind in KeyKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    for text in ["", "rsa", "rsa-1024", "rsa-4096", "ecdsa-p521", "ECDSA-P256", "ed25519 "] {
        assert!(text.parse::<KeyKind>().is_err(), "{text:?}");
        assert!(serde_json::from_value::<KeyKind>(text.into()).is_err(), "{text:?}");
    }
}

#[test]
fn the_private_key_prints_nothing_of_itself() {
    let key = key();
    assert_eq!(format!("{key:?}"), "PrivateKey");
    let signer = countersign_pki::SoftwareSigner::from(key);
    assert_eq!(format!("{signer:?}"), "SoftwareSigner(PrivateKey)");
}

#[tokio::test]
async fn a_foreign_authority_in_the_same_process_vouches_only_for_its_own_domain() {
    let shop = Realm::new("shop.example", KeyKind::Ed25519).await;
    let bank = Realm::new("bank.example", KeyKind::Ed25519).await;
    let bundles = Bundles::new(vec![shop.bundle(), bank.bundle()]).unwrap();
    let shop_leaf = shop.chain("/orders", &key()).await;
    assert!(verify(&shop_leaf.ders(), &bundles, Role::Server, now()).is_ok());
    // The same chain, while only the other domain is trusted, and while roots are exchanged.
    let only_bank = verify(&shop_leaf.ders(), &bank.bundles(), Role::Server, now());
    assert_eq!(code(only_bank), Code::UnknownTrustDomain);
    let exchanged = Bundle { domain: shop.domain.clone(), ..bank.bundle() };
    let result = verify(&shop_leaf.ders(), &Bundles::of(exchanged), Role::Server, now());
    assert_eq!(code(result), Code::UnknownIssuer);
    assert_eq!(
        code(verify(&shop_leaf.ders(), &Bundles::none(), Role::Server, now())),
        Code::UnknownTrustDomain
    );
}

#[tokio::test]
async fn two_bundles_for_one_domain_are_refused_and_not_pooled() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    assert!(Bundles::new(vec![realm.bundle(), realm.bundle()]).is_err());
}

#[tokio::test]
async fn a_leaf_signs_nothing_and_an_authority_is_no_peer() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let chain = realm.chain("/orders", &key()).await;
    let issuer = realm.issuer.certificate().der();
    let root = realm.root.certificate().der();
    let alone = verify(&[issuer], &realm.bundles(), Role::Server, now());
    assert_eq!(code(alone), Code::BadIdentity);
    assert_eq!(code(verify(&[root], &realm.bundles(), Role::Server, now())), Code::BadIdentity);
    // Trusting a leaf does not make it an authority.
    let leaf = chain.leaf().clone();
    let bundle = Bundle::new(realm.domain.clone(), vec![leaf], 1);
    let result = verify(&chain.ders(), &Bundles::of(bundle), Role::Server, now());
    assert_eq!(code(result), Code::UnknownIssuer);
}

#[tokio::test]
async fn trust_ends_when_its_last_certificate_ends() {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let chain = realm.chain("/orders", &key()).await;
    let verified = verify(&chain.ders(), &realm.bundles(), Role::Server, now()).unwrap();
    let end = verified.expires;
    assert!(verify(&chain.ders(), &realm.bundles(), Role::Server, end).is_ok());
    let after = end + Duration::from_micros(1);
    assert_eq!(code(verify(&chain.ders(), &realm.bundles(), Role::Server, after)), Code::Expired);
    assert!(realm.bundles().holds(&realm.domain, &verified.anchor));
    assert!(!realm.bundles().holds(&"bank.example".parse().unwrap(), &verified.anchor));
    assert!(!realm.bundles().holds(&realm.domain, &verified.issuer));
}

async fn joining() -> (Realm, Vec<Vec<u8>>, KeyId) {
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let chain = realm.chain("/orders", &key()).await;
    let mut ders: Vec<Vec<u8>> = chain.ders().into_iter().map(<[u8]>::to_vec).collect();
    ders.push(realm.root.certificate().der().to_vec());
    let pin = realm.root.key_id();
    (realm, ders, pin)
}

fn join(ders: &[Vec<u8>], pin: KeyId) -> Result<Bundle, Refused> {
    let ders: Vec<&[u8]> = ders.iter().map(Vec::as_slice).collect();
    verify_pinned(&ders, pin, Role::Server, now()).map(|(_, bundle)| bundle)
}

#[tokio::test]
async fn a_joining_agent_trusts_the_pinned_root_and_nothing_else() {
    let (realm, ders, pin) = joining().await;
    assert_eq!(join(&ders, pin).unwrap().authorities, realm.bundle().authorities);
    assert_eq!(code(join(&ders[..2], pin)), Code::UnknownIssuer);
    assert_eq!(code(join(&ders, key().public().id())), Code::UnknownIssuer);
    // A pin is of a root, not of the leaf or the issuer that happens to be shown.
    let leaf = Certificate::parse(&ders[0]).unwrap().key_id();
    assert_eq!(code(join(&ders, leaf)), Code::UnknownIssuer);
    assert_eq!(code(join(&ders, realm.issuer.key_id())), Code::BadSignature);
}

#[tokio::test]
async fn a_root_rewritten_around_the_pinned_key_is_refused() {
    let (_, mut ders, pin) = joining().await;
    let root = ders.last_mut().unwrap();
    let year = root.windows(3).position(|part| part == b"271").unwrap();
    root[year] = b'4';
    assert_eq!(code(join(&ders, pin)), Code::BadSignature);
}

#[tokio::test]
async fn an_attackers_chain_with_the_true_root_beside_it_is_refused() {
    let (_, ders, pin) = joining().await;
    let attacker = Realm::new("shop.example", KeyKind::Ed25519).await;
    let chain = attacker.chain("/countersign-server", &key()).await;
    let mut forged: Vec<Vec<u8>> = chain.ders().into_iter().map(<[u8]>::to_vec).collect();
    forged.push(ders[2].clone());
    assert_eq!(code(join(&forged, pin)), Code::BadSignature);
}

#[test]
fn metacharacters_widen_no_dns_name() {
    for bad in [
        "",
        "*",
        "*.shop.example",
        "a..b",
        ".a",
        "a.",
        "-a",
        "a-",
        "a/b",
        "a,b",
        "a%2fb",
        "a b",
        "a\0",
        "A.b",
        "spiffe://a",
        "é",
        &"a".repeat(64),
        &vec!["a".repeat(63); 5].join("."),
    ] {
        assert!(bad.parse::<DnsName>().is_err(), "{bad:?}");
    }
    for good in ["a", "orders", "orders.shop.example", "xn--rders-jua.example", "_tcp.a-b.c1"] {
        assert_eq!(good.parse::<DnsName>().unwrap().as_str(), good);
    }
}

#[tokio::test]
async fn a_long_chain_of_one_name_costs_a_bounded_number_of_signatures() {
    // Eight issuers of one name: each looks like the parent of each.
    let realm = Realm::new("shop.example", KeyKind::Ed25519).await;
    let mut ders = vec![realm.leaf("/orders", &key()).await.der().to_vec()];
    for _ in 0..7 {
        let other = Realm::new("shop.example", KeyKind::Ed25519).await;
        ders.push(other.issuer.certificate().der().to_vec());
    }
    let ders: Vec<&[u8]> = ders.iter().map(Vec::as_slice).collect();
    let refused = verify(&ders, &realm.bundles(), Role::Server, now());
    assert_eq!(code(refused), Code::BadSignature);
    let ninth = [ders.as_slice(), &[ders[1]]].concat();
    let refused = verify(&ninth, &realm.bundles(), Role::Server, now());
    assert_eq!(code(refused), Code::TooManyCertificates);
    assert_eq!(code(verify(&[], &realm.bundles(), Role::Server, now())), Code::NoCertificate);
}

#[test]
fn a_leaf_profile_is_stricter_than_a_verifier_about_purposes() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/verify");
    let leaf = |name: &str| {
        let text = std::fs::read_to_string(folder.join(format!("{name}.pem"))).unwrap();
        countersign_pki::decode_certificates(&text).unwrap().swap_remove(0)
    };
    assert!(check_leaf(&leaf("leaf_issuer_root")).is_ok());
    assert!(check_leaf(&leaf("leaf_without_extended_key_usage")).is_ok());
    assert!(check_leaf(&leaf("leaf_expired")).is_ok(), "a profile asks for no time");
    let servers_only = check_leaf(&leaf("leaf_for_servers_only_as_server"));
    assert_eq!(code(servers_only), Code::BadExtendedKeyUsage);
    assert_eq!(code(check_leaf(&leaf("leaf_with_two_uri_names"))), Code::SeveralIdentities);
    assert_eq!(code(check_leaf(&leaf("leaf_that_is_an_authority"))), Code::LeafIsAuthority);
}
