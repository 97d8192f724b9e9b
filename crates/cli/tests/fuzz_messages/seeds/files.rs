//! Seeds that are files. A server, its commands and its console have made the first of each kind: `backup/whole` (sealed under a
//! key of 32 sevens), `log_export/whole`, `journal/of_another_domain`, `plan_file/change` and `plan_file/prune`. The others are
//! what becomes of those.

use countersign_identity::NodeId;
use countersign_seal::KekFile;

use super::Seed;
use crate::seed;

/// Where the name of a backup begins, and its first part.
const NAME_AT: usize = 9;
const PARTS_AT: usize = 25;

pub(super) fn files() -> Vec<Seed> {
    let mut seeds = backups();
    seeds.extend(journals());
    seeds.extend(exports());
    seeds.extend(plans());
    seeds
}

/// The parts of the backup, opened.
fn opened(file: &[u8]) -> Vec<Vec<u8>> {
    let kek = KekFile::parse("kek".as_ref(), &[7; 32], None).unwrap();
    let name = NodeId::from_bytes(file[NAME_AT..PARTS_AT].try_into().unwrap());
    let (mut rest, mut parts) = (&file[PARTS_AT..], Vec::new());
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (part, more) = after.split_at(u32::from_be_bytes(*length).try_into().unwrap());
        let context = format!("backup/{name}/{}", parts.len());
        parts.push(countersign_seal::open(&kek, &context, part).unwrap().to_vec());
        rest = more;
    }
    parts
}

/// Parts behind an odd byte, each with its length before it.
fn framed<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = vec![1];
    for part in parts {
        bytes.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
        bytes.extend(part);
    }
    bytes
}

/// The pages of a part, behind its first byte.
fn pages(part: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut pages) = (&part[1..], Vec::new());
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (page, more) = after.split_at(u32::from_be_bytes(*length).try_into().unwrap());
        pages.push(page);
        rest = more;
    }
    pages
}

fn backups() -> Vec<Seed> {
    let file = seed("backup", "whole");
    let parts = opened(&file[1..]);
    let [about, of_pages, end] = &parts[..] else { panic!("{} parts", parts.len()) };
    let head = &file[..1 + PARTS_AT];
    let pages = pages(of_pages);
    let length = |page: &[u8]| u32::try_from(page.len()).unwrap().to_be_bytes();
    // One part a page, as there are in a large one.
    let each: Vec<Vec<u8>> =
        pages.iter().map(|page| [&[1][..], &length(page), page].concat()).collect();
    let two = [about.as_slice(), &each[0], &each[1], end];
    let page_that_lies = [&[1][..], &u32::MAX.to_be_bytes(), b"records"].concat();
    let of_table = |name: &str| {
        let named = [&length(name.as_bytes())[..], name.as_bytes()].concat();
        let page = pages.iter().find(|page| page.starts_with(&named));
        page.unwrap_or_else(|| panic!("no page of `{name}`")).to_vec()
    };
    // Rows that nobody has written, of a table that is there.
    let rows_that_lie = {
        let mut page = of_table("commits");
        page[11..15].copy_from_slice(&u32::MAX.to_be_bytes());
        page
    };
    vec![
        ("backup", "cut", file[..file.len() / 2].to_vec()),
        (
            "backup",
            "length_that_lies",
            [head, &((16 << 20) + 1024_u32).to_be_bytes(), b"?"].concat(),
        ),
        ("backup", "length_over_the_limit", [head, &u32::MAX.to_be_bytes(), b"?"].concat()),
        ("backup", "later_version", [&b"\0CSBACKUP\x02"[..], &file[10..200]].concat()),
        ("backup", "parts", framed(parts.iter().map(Vec::as_slice))),
        ("backup", "parts_of_one_page", framed(two)),
        ("backup", "parts_without_pages", framed([about.as_slice(), end])),
        ("backup", "parts_without_end", framed([about.as_slice(), &each[0]])),
        ("backup", "parts_after_the_end", framed([about.as_slice(), end, &each[0], end])),
        ("backup", "page_that_lies", framed([about.as_slice(), &page_that_lies, end])),
        ("backup_page", "records", of_table("records")),
        ("backup_page", "log", of_table("log")),
        ("backup_page", "commits", of_table("commits")),
        ("backup_page", "secrets", of_table("secrets")),
        ("backup_page", "issued", of_table("issued")),
        ("backup_page", "rows_that_lie", rows_that_lie),
    ]
}

fn journals() -> Vec<Seed> {
    let text = String::from_utf8(seed("journal", "of_another_domain")).unwrap();
    // The target signs what has no signature.
    let unsigned: Vec<String> = text
        .lines()
        .map(|line| {
            let (before, _signature) = line.rsplit_once(":\"").unwrap();
            format!("{before}:\"\"}}\n")
        })
        .collect();
    let rules = unsigned.concat();
    let torn = format!("{rules}{}", &unsigned[0][..40]);
    let no_line_at_the_end = rules.trim_end().to_owned();
    let among_others = format!("\n{}{text}not a rule\n\r\n{}", unsigned[1], unsigned[2]);
    let other_kind = unsigned[1].replace("\"Suspension\"", "\"Workload\"");
    let half_understood = unsigned[0].replace("process-compromise", "of-a-later-version");
    [
        ("rules", rules),
        ("torn", torn),
        ("no_line_at_the_end", no_line_at_the_end),
        ("among_others", among_others),
        ("other_kind", other_kind),
        ("half_understood", half_understood),
    ]
    .map(|(name, text)| ("journal", name, text.into_bytes()))
    .into()
}

fn exports() -> Vec<Seed> {
    let text = String::from_utf8(seed("log_export", "whole")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let joined = |lines: &[&str]| lines.join("\n") + "\n";
    let mut swapped = lines.clone();
    swapped.swap(3, 4);
    let heading: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
    let of_heading = |change: fn(&mut serde_json::Value)| {
        let mut heading = heading.clone();
        change(&mut heading["log"]);
        let heading = heading.to_string();
        joined(&[&[heading.as_str()], &lines[1..]].concat())
    };
    let unsigned = of_heading(|log| {
        log["checkpoints"] = serde_json::json!([]);
        log.as_object_mut().unwrap().remove("counted");
    });
    let of_another_life = of_heading(|log| log["incarnation"] = 2.into());
    let older = of_heading(|log| drop(log["checkpoints"].as_array_mut().unwrap().remove(0)));
    let trimmed: Vec<String> = lines[1..]
        .iter()
        .map(|line| {
            let mut leaf: serde_json::Value = serde_json::from_str(line).unwrap();
            leaf.as_object_mut().unwrap().retain(|name, _| name != "details" && name != "salt");
            leaf.to_string()
        })
        .collect();
    let trimmed: Vec<&str> = trimmed.iter().map(String::as_str).collect();
    [
        ("swapped", joined(&swapped)),
        ("cut", joined(&lines[..8])),
        ("unsigned", unsigned),
        ("of_another_life", of_another_life),
        ("older_checkpoint", older),
        ("trimmed", joined(&[&lines[..1], &trimmed].concat())),
    ]
    .map(|(name, text)| ("log_export", name, text.into_bytes()))
    .into()
}

fn plans() -> Vec<Seed> {
    let text = String::from_utf8(seed("plan_file", "change")).unwrap();
    let mut plan: serde_json::Value = serde_json::from_str(&text).unwrap();
    let later = text.replace("\"version\": 1", "\"version\": 2");
    plan["resources"][0]["spec"]["selectors"] = serde_json::json!(["unix:uid:0", 7, null]);
    let wrong = plan.to_string();
    plan["plan"]["base"].take();
    [("later_version", later), ("wrong_manifest", wrong), ("without_base", plan.to_string())]
        .map(|(name, text)| ("plan_file", name, text.into_bytes()))
        .into()
}
