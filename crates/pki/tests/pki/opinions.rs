//! Second and third opinions on every vector: OpenSSL and GnuTLS. `docs/verifier.md` says where they differ from us, and
//! why; this compares that page with what it sees, or writes its table anew (`INSTA_UPDATE=always`).

mod reasons;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use countersign_pki::{Role, encode_certificate};

use self::reasons::why;
use crate::vectors::{Case, cases};

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tool {
    OpenSsl,
    GnuTls,
}

/// The files of one question.
struct Files {
    roots: PathBuf,
    leaf: PathBuf,
    others: Option<PathBuf>,
    chain: PathBuf,
}

impl Files {
    fn write(folder: &Path, number: usize, case: &Case) -> Self {
        let file = |name: &str, ders: &[&[u8]]| {
            let path = folder.join(format!("{number}.{name}.pem"));
            let pem: String = ders.iter().map(|der| encode_certificate(der)).collect();
            std::fs::write(&path, pem).unwrap();
            path
        };
        let chain: Vec<&[u8]> = case.chain.iter().map(Vec::as_slice).collect();
        let (leaf, others) = chain.split_at(1.min(chain.len()));
        Self {
            roots: file("roots", &case.roots()),
            leaf: file("leaf", leaf),
            others: (!others.is_empty()).then(|| file("others", others)),
            chain: file("chain", &chain),
        }
    }
}

impl Tool {
    /// Whether it accepts.
    fn asked(self, case: &Case, files: &Files) -> bool {
        // Both read an empty file of roots as a mistake, and not as nobody to trust.
        if case.roots().is_empty() {
            return false;
        }
        let mut command = match self {
            Self::OpenSsl => openssl(case, files),
            Self::GnuTls => gnutls(case, files),
        };
        command.env("TZ", "UTC").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status();
        status.expect("`apt-get install openssl gnutls-bin` has both").success()
    }
}

/// With keys of at least 112 bits. `-x509_strict` asks for key identifiers everywhere, which these chains are without.
fn openssl(case: &Case, files: &Files) -> Command {
    let mut command = Command::new("openssl");
    command.args(["verify", "-no-CApath", "-no-CAstore", "-auth_level", "2"]);
    command.args(["-attime", &case.at.secs().to_string(), "-purpose"]);
    command.arg(match case.role {
        Role::Server => "sslserver",
        Role::Client => "sslclient",
    });
    command.arg("-CAfile").arg(&files.roots);
    if let Some(others) = &files.others {
        command.arg("-untrusted").arg(others);
    }
    command.arg(&files.leaf);
    command
}

fn gnutls(case: &Case, files: &Files) -> Command {
    let mut command = Command::new("certtool");
    command.args(["--verify", "--verify-profile", "medium"]);
    // It knows no moment but now.
    let at = case.at.to_string()[..19].replace('T', " ");
    command.env("LD_PRELOAD", faketime()).env("FAKETIME", at);
    command.args([
        "--verify-purpose",
        match case.role {
            Role::Server => "1.3.6.1.5.5.7.3.1",
            Role::Client => "1.3.6.1.5.5.7.3.2",
        },
    ]);
    command.arg("--load-ca-certificate").arg(&files.roots).arg("--infile").arg(&files.chain);
    command
}

/// The library by which a program is told another time.
fn faketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap();
    let mut libraries = folders.map(|it| it.unwrap().path().join("faketime/libfaketime.so.1"));
    libraries.find(|path| path.exists()).expect("`apt-get install libfaketime` has it")
}

/// Asks both about each case, a few at a time.
fn opinions(cases: &[Case]) -> Vec<[bool; 2]> {
    let folder = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    let ask = || {
        let mut answers = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(number) else { return answers };
            let files = Files::write(folder.path(), number, case);
            answers
                .push((number, [Tool::OpenSsl, Tool::GnuTls].map(|tool| tool.asked(case, &files))));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, answers)| answers).collect()
}

/// The table: a row for each reason, with the names of the cases.
fn table(cases: &[Case]) -> String {
    let mut rows: BTreeMap<&str, BTreeMap<Tool, Vec<&str>>> = BTreeMap::new();
    let mut unexplained = Vec::new();
    let mut differing = [0; 2];
    for (case, answers) in cases.iter().zip(opinions(cases)) {
        let ours = case.rule.is_none();
        for (tool, theirs) in [Tool::OpenSsl, Tool::GnuTls].into_iter().zip(answers) {
            if theirs == ours {
                continue;
            }
            differing[tool as usize] += 1;
            match why(case) {
                Some(reason) => {
                    rows.entry(reason).or_default().entry(tool).or_default().push(&case.name);
                }
                None => unexplained.push(format!("{tool:?} {} {:?}", case.name, case.rule)),
            }
        }
    }
    assert!(unexplained.is_empty(), "nobody says why:\n{}", unexplained.join("\n"));
    assert!(10 <= rows.len(), "two programs that never differ from us were not really asked");
    let right = cases.iter().filter(|case| case.rule.is_none()).count();
    let [openssl, gnutls] = differing;
    let mut text = format!(
        "Of {} chains, {right} of them right, OpenSSL judges {openssl} otherwise and GnuTLS {gnutls}.\n\n\
         | why | OpenSSL | GnuTLS |\n| --- | --- | --- |\n",
        cases.len()
    );
    for (reason, tools) in rows {
        let cell = |tool| {
            tools.get(&tool).map_or_else(String::new, |names| {
                let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                format!("{}: {}", names.len(), names.join(", "))
            })
        };
        writeln!(text, "| {reason} | {} | {} |", cell(Tool::OpenSsl), cell(Tool::GnuTls)).unwrap();
    }
    text
}

#[test]
fn openssl_and_gnutls_differ_from_us_where_the_page_says_so_and_why() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/verifier.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let begin = "<!-- differences -->\n";
    let (before, rest) = text.split_once(begin).unwrap();
    let (told, after) = rest.split_once("<!-- end -->").unwrap();
    let seen = table(&cases());
    if std::env::var_os("INSTA_UPDATE").is_some_and(|update| update == "always") {
        let text = format!("{before}{begin}{seen}<!-- end -->{after}");
        std::fs::write(page, text).unwrap();
        return;
    }
    for (told, seen) in told.lines().zip(seen.lines()) {
        assert_eq!(told, seen);
    }
    assert_eq!(told.lines().count(), seen.lines().count());
}
