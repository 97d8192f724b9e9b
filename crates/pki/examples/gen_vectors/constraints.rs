//! Constraints on directory names, addresses of mail and addresses of hosts (RFC 5280, 4.2.1.10): each is in the issuer of the
//! right chain already, and what breaks it is in the leaf alone; or the constraint itself is badly written.

use crate::x509::{self, dns, seq, tlv, uri};
use crate::{Case, accepted, twin_of};

const PERMITTED: u8 = 0;
const EXCLUDED: u8 = 1;

const COUNTRY: &[u8] = &[0x55, 4, 6];
const ORGANISATION: &[u8] = &[0x55, 4, 10];
const COMMON: &[u8] = &[0x55, 4, 3];
const EMAIL_ADDRESS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1];
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;
const BMP: u8 = 0x1e;

/// An attribute, the kind of its text, and its text.
type Attribute = (&'static [u8], u8, &'static [u8]);

const SHOP: Attribute = (ORGANISATION, UTF8, b"Shop");
const BANK: Attribute = (ORGANISATION, UTF8, b"Bank");
const ORDERS: Attribute = (COMMON, UTF8, b"orders");
const GERMANY: Attribute = (COUNTRY, PRINTABLE, b"DE");

/// A name of parts, each of some attributes.
fn name(parts: &[&[Attribute]]) -> Vec<u8> {
    let pair = |(oid, tag, text): &Attribute| seq(&[&tlv(6, &[oid]), &tlv(*tag, &[text])]);
    let part = |attributes: &&[Attribute]| {
        let mut pairs: Vec<Vec<u8>> = attributes.iter().map(pair).collect();
        pairs.sort();
        tlv(0x31, &[&pairs.concat()])
    };
    seq(&[&parts.iter().map(part).collect::<Vec<_>>().concat()])
}

/// The same as a name beside others.
fn directory(parts: &[&[Attribute]]) -> Vec<u8> {
    tlv(0xa4, &[&name(parts)])
}

fn mail(text: &[u8]) -> Vec<u8> {
    tlv(0x81, &[text])
}

fn host(bytes: &[u8]) -> Vec<u8> {
    tlv(0x87, &[bytes])
}

/// A right chain whose issuer is constrained, and what else may be said of its leaf.
struct Constrained {
    which: u8,
    base: Vec<u8>,
}

impl Constrained {
    fn case(&self, case: &mut Case, change: impl FnOnce(&mut Case)) {
        let value = x509::constraint(self.which, &self.base);
        case.issuer().set(x509::CONSTRAINTS, true, &value);
        change(case);
    }

    fn right(&self, name: &str, change: impl FnOnce(&mut Case)) -> Case {
        accepted(name, |case| self.case(case, change))
    }

    fn broken(&self, twin: &'static str, name: &str, change: impl FnOnce(&mut Case)) -> Case {
        twin_of(twin, name, "name-constraint", |case| self.case(case, change))
    }
}

fn subject(parts: &[&[Attribute]]) -> impl FnOnce(&mut Case) + use<> {
    let name = name(parts);
    move |case| case.leaf().subject = name
}

/// One more name.
fn named(more: Vec<u8>) -> impl FnOnce(&mut Case) + use<> {
    move |case| {
        case.leaf().names(&[uri(b"spiffe://shop.example/orders"), more]);
    }
}

pub(crate) fn cases() -> Vec<Case> {
    [directories(), mails(), hosts()].into_iter().flatten().collect()
}

fn directories() -> Vec<Case> {
    let only = Constrained { which: PERMITTED, base: directory(&[&[SHOP]]) };
    let none = Constrained { which: EXCLUDED, base: directory(&[&[BANK]]) };
    let (permits, excludes) =
        ("directory_constraint_that_permits", "directory_constraint_that_excludes_others");
    let texts: [(&str, u8, &[u8], &[u8]); 4] = [
        ("in_another_case", UTF8, b"SHOP", b"bANK"),
        ("between_blanks", UTF8, b"  Shop ", b" Bank  "),
        ("in_another_kind_of_text", PRINTABLE, b"Shop", b"Bank"),
        ("in_wide_text", BMP, b"\0S\0h\0o\0p", b"\0B\0a\0n\0k"),
    ];
    let mut cases = vec![
        only.right(permits, subject(&[&[SHOP], &[ORDERS]])),
        only.right("directory_constraint_without_a_subject", |_case| {}),
        only.right("subject_that_is_what_is_permitted", subject(&[&[SHOP]])),
        none.right(excludes, subject(&[&[SHOP], &[ORDERS]])),
        none.right("subject_with_the_excluded_after_its_begin", subject(&[&[GERMANY], &[BANK]])),
        only.broken(permits, "subject_not_permitted", subject(&[&[BANK], &[ORDERS]])),
        only.broken(permits, "subject_that_begins_otherwise", subject(&[&[ORDERS], &[SHOP]])),
        only.broken(
            permits,
            "subject_that_is_only_alike",
            subject(&[&[(ORGANISATION, UTF8, b"Shops")], &[ORDERS]]),
        ),
        only.broken(
            permits,
            "subject_of_another_attribute",
            subject(&[&[(COMMON, UTF8, b"Shop")], &[ORDERS]]),
        ),
        only.broken(permits, "subject_with_more_in_its_first_part", subject(&[&[SHOP, ORDERS]])),
        only.broken(permits, "directory_name_not_permitted", |case| {
            subject(&[&[SHOP], &[ORDERS]])(case);
            named(directory(&[&[BANK]]))(case);
        }),
        none.broken(excludes, "subject_excluded", subject(&[&[BANK], &[ORDERS]])),
        none.broken(excludes, "directory_name_excluded", |case| {
            subject(&[&[SHOP], &[ORDERS]])(case);
            named(directory(&[&[BANK], &[ORDERS]]))(case);
        }),
    ];
    for (how, tag, shop, bank) in texts {
        let shop: &[Attribute] = &[(ORGANISATION, tag, shop)];
        let bank: &[Attribute] = &[(ORGANISATION, tag, bank)];
        let right = format!("subject_permitted_{how}");
        cases.push(only.right(&right, subject(&[shop, &[ORDERS]])));
        let broken = format!("subject_excluded_{how}");
        cases.push(none.broken(excludes, &broken, subject(&[bank, &[ORDERS]])));
    }
    cases
}

fn mails() -> Vec<Case> {
    let base = |which, text: &[u8]| Constrained { which, base: mail(text) };
    let (only, none) = (base(PERMITTED, b"shop.example"), base(EXCLUDED, b"bank.example"));
    let mailbox = base(PERMITTED, b"orders@shop.example");
    let below = base(PERMITTED, b".shop.example");
    let (permits, excludes) = ("mail_constraint_that_permits", "mail_constraint_that_excludes");
    let in_subject = |text: &'static [u8]| subject(&[&[SHOP], &[(EMAIL_ADDRESS, IA5, text)]]);
    vec![
        accepted("mail_address_under_no_constraint", named(mail(b"orders@shop.example"))),
        accepted("mail_address_in_a_subject_under_no_constraint", in_subject(b"a@shop.example")),
        only.right(permits, |_case| {}),
        none.right(excludes, |_case| {}),
        mailbox.right("mail_constraint_on_one_mailbox", |_case| {}),
        below.right("mail_constraint_on_the_hosts_below", |_case| {}),
        only.right("mail_constraint_beside_a_dns_name", named(dns(b"bank.example"))),
        only.broken(permits, "mail_address_not_permitted", named(mail(b"orders@bank.example"))),
        only.broken(permits, "mail_address_of_a_host_below", named(mail(b"a@eu.shop.example"))),
        only.broken(permits, "mail_address_that_is_permitted", named(mail(b"a@shop.example"))),
        only.broken(permits, "mail_in_a_subject_not_permitted", in_subject(b"a@bank.example")),
        only.broken(permits, "mail_in_a_subject_that_is_permitted", in_subject(b"a@shop.example")),
        none.broken(excludes, "mail_address_excluded", named(mail(b"orders@bank.example"))),
        none.broken(
            excludes,
            "mail_address_excluded_in_another_case",
            named(mail(b"a@BANK.example")),
        ),
        none.broken(excludes, "mail_address_that_is_not_excluded", named(mail(b"a@shop.example"))),
        none.broken(excludes, "mail_in_a_subject_excluded", in_subject(b"a@bank.example")),
        mailbox.broken(
            "mail_constraint_on_one_mailbox",
            "mail_address_of_another_mailbox",
            named(mail(b"cron@shop.example")),
        ),
        below.broken(
            "mail_constraint_on_the_hosts_below",
            "mail_address_of_the_host_itself",
            named(mail(b"orders@shop.example")),
        ),
    ]
}

fn hosts() -> Vec<Case> {
    let base = |which, network: &[u8]| Constrained { which, base: host(network) };
    let v4: &[u8] = &[10, 1, 0, 0, 255, 255, 0, 0];
    let mut v6 = [0; 32];
    v6[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
    v6[16..20].copy_from_slice(&[255; 4]);
    let mut inside = [0; 16];
    inside[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
    inside[15] = 1;
    let mut outside = inside;
    outside[3] = 0xb9;
    let (only, none) = (base(PERMITTED, v4), base(EXCLUDED, v4));
    let (only6, none6) = (base(PERMITTED, &v6), base(EXCLUDED, &v6));
    // What is written so badly is in the issuer, and the leaf is the twin's.
    let holes = base(PERMITTED, &[10, 1, 0, 3, 255, 255, 0, 255]);
    let short = base(PERMITTED, &[10, 1, 2, 255, 255, 255]);
    let without = "host_constraint_without_addresses";
    let (permits, excludes) = ("host_constraint_that_permits", "host_constraint_that_excludes");
    let (permits6, excludes6) =
        ("host_constraint_of_version_6_that_permits", "host_constraint_of_version_6_that_excludes");
    vec![
        only.right(permits, named(host(&[10, 1, 2, 3]))),
        only.right(without, |_case| {}),
        only.right("first_address_permitted", named(host(&[10, 1, 0, 0]))),
        only.right("last_address_permitted", named(host(&[10, 1, 255, 255]))),
        none.right(excludes, named(host(&[10, 2, 0, 0]))),
        none.right("address_of_version_6_beside_what_is_excluded", named(host(&inside))),
        only6.right(permits6, named(host(&inside))),
        none6.right(excludes6, named(host(&outside))),
        only.broken(permits, "address_before_the_first_permitted", named(host(&[10, 0, 255, 255]))),
        only.broken(permits, "address_after_the_last_permitted", named(host(&[10, 2, 0, 0]))),
        only.broken(permits, "address_of_version_6_under_version_4", named(host(&inside))),
        only.broken(permits, "second_address_not_permitted", |case| {
            let id = uri(b"spiffe://shop.example/orders");
            case.leaf().names(&[id, host(&[10, 1, 2, 3]), host(&[10, 2, 2, 3])]);
        }),
        none.broken(excludes, "first_address_excluded", named(host(&[10, 1, 0, 0]))),
        none.broken(excludes, "last_address_excluded", named(host(&[10, 1, 255, 255]))),
        only6.broken(permits6, "address_of_version_6_not_permitted", named(host(&outside))),
        only6.broken(permits6, "address_of_version_4_under_version_6", named(host(&[10, 1, 2, 3]))),
        none6.broken(excludes6, "address_of_version_6_excluded", named(host(&inside))),
        holes.broken(permits, "host_mask_with_holes", named(host(&[10, 1, 2, 3]))),
        holes.broken(without, "host_mask_with_holes_without_addresses", |_case| {}),
        short.broken(permits, "host_constraint_of_six_bytes", named(host(&[10, 1, 2, 3]))),
        short.broken(without, "host_constraint_of_six_bytes_without_addresses", |_case| {}),
    ]
}
