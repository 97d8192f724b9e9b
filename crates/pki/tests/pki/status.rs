//! Revocation lists, and answers about certificates.

use countersign_identity::{Reason, Revision, Serial};
use countersign_pki::{
    Certificate, Crl, CrlDraft, CrlNumber, CrlOf, Issuer, KeyKind, OcspAnswer, OcspFault,
    OcspIssuer, OcspNamed, OcspRequest, OcspStatus, Pointers, PrivateKey, ResponderDraft,
    RevokedSerial, Shards, Signer, SoftwareSigner,
};
use der::Decode;

use crate::support::{Realm, lifetime, now, serial, signed};

fn number(number: u64) -> CrlNumber {
    CrlNumber::new(Revision { incarnation: 1, number }, now())
}

fn draft<'a>(issuer: &'a Issuer, entries: &'a [RevokedSerial]) -> CrlDraft<'a> {
    CrlDraft {
        issuer,
        number: number(7),
        this_update: now(),
        next_update: now() + lifetime("1h").duration(),
        of: CrlOf::Users,
        part: None,
        base: None,
        freshest: None,
        entries,
    }
}

fn entries(count: u64) -> Vec<RevokedSerial> {
    let mut entries: Vec<_> = (0..count)
        .map(|seed| RevokedSerial {
            serial: serial(seed),
            at: now(),
            reason: Reason::ALL[usize::try_from(seed).unwrap() % Reason::ALL.len()],
        })
        .collect();
    entries.sort_unstable();
    entries
}

/// DER of a request with one question of these digests, by the old digest or the new.
fn request(question: &[u8], extensions: &[u8]) -> Vec<u8> {
    let questions = sequence(&[&sequence(&[question])]);
    sequence(&[&sequence(&[&questions, extensions])])
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    value(0x30, &parts.concat())
}

fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let header = match u8::try_from(length) {
        Ok(short @ 0..=127) => vec![tag, short],
        Ok(long) => vec![tag, 0x81, long],
        Err(_) => vec![
            tag,
            0x82,
            u8::try_from(length >> 8).unwrap(),
            u8::try_from(length & 0xff).unwrap(),
        ],
    };
    [header, content.to_vec()].concat()
}

fn question(name: &[u8], key: &[u8], serial: Serial) -> Vec<u8> {
    const SHA1: &[u8] = &[0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00];
    sequence(&[SHA1, &value(4, name), &value(4, key), &value(2, serial.as_bytes())])
}

fn nonce(bytes: &[u8]) -> Vec<u8> {
    const NONCE: &[u8] = &[0x06, 0x09, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x02];
    let extension = sequence(&[NONCE, &value(4, &value(4, bytes))]);
    value(0xa2, &sequence(&[&extension]))
}

fn sha1(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec()
}

/// Digests of an authority's name and key, made by another reader of certificates.
fn named(authority: &Certificate) -> (Vec<u8>, Vec<u8>) {
    use der::Encode as _;
    let theirs = x509_cert::Certificate::from_der(authority.der()).unwrap();
    let tbs = theirs.tbs_certificate();
    let key = tbs.subject_public_key_info().subject_public_key.raw_bytes();
    (sha1(&tbs.subject().to_der().unwrap()), sha1(key))
}

#[tokio::test]
async fn list_says_what_was_put_into_it_and_others_read_it_alike() {
    for kind in [KeyKind::P256, KeyKind::Ed25519] {
        let realm = Realm::new("shop.example", kind).await;
        let entries = entries(300);
        let der = draft(&realm.issuer, &entries).sign(&realm.signer).await.unwrap();
        let list = Crl::parse(&der).unwrap();
        assert!(list.is_of(realm.issuer.certificate()));
        assert!(!list.is_of(realm.root.certificate()));
        assert_eq!(
            (list.number, list.of, list.part, list.base),
            (number(7), CrlOf::Users, None, None)
        );
        assert_eq!(list.entries.len(), 300);
        for entry in &entries {
            assert_eq!(list.entries[&entry.serial], (entry.at, entry.reason.crl_code()));
        }
        let theirs: x509_cert::crl::CertificateList = Decode::from_der(&der).unwrap();
        assert_eq!(theirs.tbs_cert_list.revoked_certificates.as_ref().unwrap().len(), 300);
    }
}

#[tokio::test]
async fn empty_list_is_a_list() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let der = draft(&realm.issuer, &[]).sign(&realm.signer).await.unwrap();
    assert!(Crl::parse(&der).unwrap().entries.is_empty());
    let theirs: x509_cert::crl::CertificateList = Decode::from_der(&der).unwrap();
    assert!(theirs.tbs_cert_list.revoked_certificates.is_none());
}

#[tokio::test]
async fn parts_and_changes_say_what_they_are() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let part =
        CrlDraft { part: Some("http://crl.shop.example/4-2.crl"), ..draft(&realm.issuer, &[]) };
    let part = Crl::parse(&part.sign(&realm.signer).await.unwrap()).unwrap();
    assert_eq!(part.part.as_deref(), Some("http://crl.shop.example/4-2.crl"));
    let delta = CrlDraft { base: Some(number(3)), ..draft(&realm.issuer, &[]) };
    let delta = Crl::parse(&delta.sign(&realm.signer).await.unwrap()).unwrap();
    assert_eq!(delta.base, Some(number(3)));
    let of = CrlDraft { of: CrlOf::Authorities, ..draft(&realm.root, &[]) };
    let of = Crl::parse(&of.sign(&realm.root_signer).await.unwrap()).unwrap();
    assert_eq!(of.of, CrlOf::Authorities);
    let any = CrlDraft { base: Some(CrlNumber::ZERO), ..draft(&realm.issuer, &[]) };
    let any = Crl::parse(&any.sign(&realm.signer).await.unwrap()).unwrap();
    assert_eq!(any.base, Some(CrlNumber::ZERO));
}

#[tokio::test]
async fn list_of_another_key_or_with_a_changed_byte_is_of_nobody() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let entries = entries(3);
    let draft = draft(&realm.issuer, &entries);
    assert!(draft.sign(&realm.root_signer).await.is_err(), "another signer than the issuer's");
    let der = draft.sign(&realm.signer).await.unwrap();
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 1;
        let of_it = Crl::parse(&changed).is_ok_and(|list| list.is_of(realm.issuer.certificate()));
        assert!(!of_it, "byte {at}");
        assert!(Crl::parse(&der[..at]).is_err(), "{at} bytes");
    }
}

async fn responder(realm: &Realm) -> (Certificate, SoftwareSigner) {
    let signer = SoftwareSigner::from(PrivateKey::generate(KeyKind::P256).unwrap());
    let draft = ResponderDraft {
        issuer: realm.issuer.clone(),
        key: signer.public().clone(),
        serial: serial(9),
        issued: now(),
        lifetime: lifetime("24h"),
    };
    (signed(draft.review().unwrap(), &realm.signer).await, signer)
}

#[tokio::test]
async fn responder_is_no_svid_and_no_authority() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let (certificate, _signer) = responder(&realm).await;
    assert!(certificate.is_ocsp_responder());
    assert!(!certificate.is_authority());
    assert!(countersign_pki::check_leaf(certificate.der()).is_err());
    assert!(!realm.issuer.certificate().is_ocsp_responder());
    let long = ResponderDraft {
        issuer: realm.issuer.clone(),
        key: certificate.public_key().unwrap(),
        serial: serial(9),
        issued: now(),
        lifetime: lifetime("8d"),
    };
    assert!(long.clone().review().is_err(), "what cannot be revoked does not live long");
    let own = ResponderDraft { key: realm.issuer.key().clone(), lifetime: lifetime("1d"), ..long };
    assert!(own.review().is_err(), "a key of its own");
}

#[tokio::test]
async fn questions_name_the_issuer_by_its_name_and_its_key() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let (name, key) = named(realm.issuer.certificate());
    let asked = serial(5);
    let read =
        OcspRequest::parse(&request(&question(&name, &key, asked), &nonce(&[7; 16]))).unwrap();
    assert_eq!(read.nonce.as_deref(), Some(&[7; 16][..]));
    assert_eq!(read.questions[0].serial(), Some(asked));
    assert!(read.questions[0].is_about(&OcspIssuer::of(realm.issuer.certificate())));
    assert!(!read.questions[0].is_about(&OcspIssuer::of(realm.root.certificate())));
    let swapped = OcspRequest::parse(&request(&question(&key, &name, asked), &[])).unwrap();
    assert!(!swapped.questions[0].is_about(&OcspIssuer::of(realm.issuer.certificate())));
}

#[test]
fn requests_out_of_bounds_are_refused() {
    let one = question(&[1; 20], &[2; 20], serial(1));
    assert!(OcspRequest::parse(&request(&one, &[])).is_ok());
    for bad in [0, 129] {
        assert!(OcspRequest::parse(&request(&one, &nonce(&vec![1; bad]))).is_err(), "{bad} bytes");
    }
    assert!(OcspRequest::parse(&request(&one, &nonce(&[1; 128]))).is_ok());
    let many = |count: usize| {
        let questions = sequence(&[&sequence(&[&one]).repeat(count)]);
        OcspRequest::parse(&sequence(&[&sequence(&[&questions])]))
    };
    assert!(many(0).is_err());
    assert!(many(32).is_ok());
    assert!(many(33).is_err());
    assert!(many(200).is_err());
    let whole = request(&one, &[]);
    for length in 0..whole.len() {
        assert!(OcspRequest::parse(&whole[..length]).is_err(), "{length} bytes");
    }
    // Version 1 that is written out, another version, a critical extension that nobody knows.
    let version = [&[0xa0, 0x03, 0x02, 0x01, 0x00][..], &sequence(&[&sequence(&[&one])])].concat();
    assert!(OcspRequest::parse(&sequence(&[&sequence(&[&version])])).is_err());
    let critical = sequence(&[&[0x06, 0x01, 0x2a, 0x01, 0x01, 0xff], &value(4, &[])]);
    let critical = value(0xa2, &sequence(&[&critical]));
    assert!(OcspRequest::parse(&request(&one, &critical)).is_err());
}

#[tokio::test]
async fn answer_holds_status_and_nonce_and_the_responder() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let (certificate, signer) = responder(&realm).await;
    let request =
        OcspRequest::parse(&request(&question(&[1; 20], &[2; 20], serial(1)), &[])).unwrap();
    let answer = OcspAnswer {
        statuses: vec![(
            &request.questions[0],
            OcspStatus::Revoked { at: now(), reason: Reason::KeyCompromise },
        )],
        produced: now(),
        this_update: now(),
        next_update: now() + lifetime("5m").duration(),
        nonce: Some(&[0xab; 9]),
    };
    let der = answer.sign(&certificate, &signer).await.unwrap();
    let holds = |part: &[u8]| der.windows(part.len()).any(|window| window == part);
    assert!(holds(certificate.der()));
    assert!(holds(&[0xab; 9]));
    assert!(
        answer.sign(&certificate, &realm.signer).await.is_err(),
        "another key than the responder's"
    );
    assert_eq!(OcspFault::TryLater.to_der(), [0x30, 0x03, 0x0a, 0x01, 0x03]);
}

#[tokio::test]
async fn certificates_name_lists_and_responder_only_when_asked() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let plain = realm.leaf("/orders", &key).await;
    let holds = |certificate: &Certificate, text: &str| {
        certificate.der().windows(text.len()).any(|window| window == text.as_bytes())
    };
    assert!(!holds(&plain, "http://"));
    let mut profile = realm.profile();
    profile.pointers = Some(Pointers {
        url: "http://crl.shop.example".parse().unwrap(),
        shards: Shards::new(4).unwrap(),
        ocsp: OcspNamed::Yes,
    });
    let reviewed = realm.draft("/orders", &key).review(&profile, &realm.issuer).unwrap();
    let leaf = signed(reviewed, &realm.signer).await;
    let shard = Shards::new(4).unwrap().of(leaf.serial().unwrap());
    let issuer = realm.issuer.key_id();
    assert!(holds(&leaf, &format!("http://crl.shop.example/crl/{issuer}/{shard}.crl")));
    assert!(holds(&leaf, "http://crl.shop.example/ocsp"));
    assert!(countersign_pki::check_leaf(leaf.der()).is_ok());
    profile.pointers = Some(Pointers {
        url: "http://crl.shop.example".parse().unwrap(),
        shards: Shards::ONE,
        ocsp: OcspNamed::No,
    });
    let reviewed = realm.draft("/orders", &key).review(&profile, &realm.issuer).unwrap();
    let leaf = signed(reviewed, &realm.signer).await;
    assert!(holds(&leaf, &format!("http://crl.shop.example/crl/{issuer}.crl")));
    assert!(!holds(&leaf, "/ocsp"));
}

#[tokio::test]
async fn list_of_100_000_is_one_list() {
    let realm = Realm::new("shop.example", KeyKind::P256).await;
    let entries = entries(100_000);
    let der = draft(&realm.issuer, &entries).sign(&realm.signer).await.unwrap();
    assert_eq!(Crl::parse(&der).unwrap().entries.len(), 100_000);
}
