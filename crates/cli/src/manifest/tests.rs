use std::path::{Path, PathBuf};

use super::*;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/broken-manifests")
}

/// What is said of a folder, with file names as seen from it.
fn said(folder: &Path) -> String {
    let problems = load(folder).expect_err("every folder of the testdata is broken");
    let prefix = format!("{}/", folder.display());
    let told = problems.to_string().replace(&prefix, "");
    told.replace(&folder.display().to_string(), "FOLDER") + "\n"
}

#[test]
fn each_broken_folder_is_told_with_file_line_field_and_remedy() {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(testdata()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(15 <= folders.len());
    let mut differing = Vec::new();
    for folder in folders {
        let told = said(&folder);
        let file = folder.join("expected.txt");
        if std::env::var_os("COUNTERSIGN_WRITE_EXPECTED").is_some() {
            std::fs::write(&file, &told).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        if told != expected {
            differing.push(format!("{}:\n{told}expected:\n{expected}", folder.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn the_example_is_right() {
    let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop");
    let resources = load(&shop).unwrap();
    assert_eq!(resources.len(), 9);
}

#[test]
fn only_files_of_manifests_are_read_and_one_file_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("within.yaml")).unwrap();
    for (name, text) in [
        ("readme.md", "not: [yaml"),
        (".hidden.yaml", "not: [yaml"),
        (
            "a.yml",
            "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {name: a}\nspec: {trustDomain: a}\n",
        ),
        ("b.yaml", "# nothing but a comment\n---\n---\n"),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    assert_eq!(load(folder.path()).unwrap().len(), 1);
    assert_eq!(load(&folder.path().join("a.yml")).unwrap().len(), 1);
    let empty = load(&folder.path().join("b.yaml")).unwrap_err();
    assert!(empty.to_string().contains("holds no manifest"), "{empty}");
}

#[test]
fn a_file_that_cannot_be_read_is_told_beside_the_problems_of_the_others() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/no/such/file", folder.path().join("gone.yaml")).unwrap();
    nix::unistd::mkfifo(&folder.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::write(folder.path().join("wrong.yaml"), "kind: Workload\n").unwrap();
    let problems = load(folder.path()).unwrap_err().to_string();
    for part in ["gone.yaml: cannot be read", "pipe.yaml: is not a regular file", "wrong.yaml:1"] {
        assert!(problems.contains(part), "{part}: {problems}");
    }
}

#[test]
fn a_policy_file_beside_the_manifest_is_taken_in() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("a.yaml"),
        "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {name: a}\nspec: {trustDomain: a}\n---\n\
         apiVersion: countersign.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec: {cedarFile: sub/p.cedar}\n",
    )
    .unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    let text = "@unscoped(\"a test\")\npermit (principal, action, resource);\n";
    std::fs::write(folder.path().join("sub/p.cedar"), text).unwrap();
    let resources = load(folder.path()).unwrap();
    let cedar = |resource: &Resource| match &resource.spec {
        countersign_api::resource::Spec::Policy(spec) => spec.cedar.as_str().to_owned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(resources.last().map(cedar).as_deref(), Some(text));
}

#[test]
fn a_large_file_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    let problems = load(&path).unwrap_err().to_string();
    assert!(problems.contains("is larger than"), "{problems}");
}

#[test]
fn any_bytes_are_refused_without_a_panic() {
    for text in [
        "",
        "\u{feff}",
        "- - - -",
        "? a\n: b\n",
        "&a *a",
        "%YAML 9.9\n---\n",
        "a: |9\n b",
        "'",
        "\"\\x",
        "!!",
        "{}",
        "[]",
        "5",
        "a: b: c",
        "--- ---",
        "...",
        "\u{0}",
        "*a",
        "<<: *a",
        "!<tag:yaml.org,2002:str> a: b",
    ] {
        // Whether it is refused or empty, it does not matter here.
        let _ = read_text("a.yaml", text);
    }
}

fn resources(text: &str) -> Vec<Resource> {
    read_text("in force", text).unwrap()
}

const DOMAIN: &str = "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {name: first}\nspec: {trustDomain: a}\n";
const WORKLOAD: &str = "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {name: web}\nspec: {selectors: [\"launch:web\"]}\n";

#[test]
fn manifests_are_checked_together_with_what_is_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    let service = "apiVersion: countersign.dev/v1alpha1\nkind: Service\nmetadata: {name: web}\nspec: {workload: web}\n";
    std::fs::write(&path, service).unwrap();
    let manifests = Manifests::read(&path).unwrap();
    let domain = "a".parse().unwrap();
    let in_force = resources(&format!("{DOMAIN}---\n{WORKLOAD}"));
    assert_eq!(manifests.problems_of_set(&in_force, Some(&domain)), []);
    let alone = manifests.problems_of_set(&[], Some(&domain));
    assert_eq!(alone.len(), 1, "{alone:?}");
    assert_eq!((alone[0].line, alone[0].field.as_str()), (Some(4), "spec.workload"));
}

#[test]
fn a_trust_domain_may_be_declared_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.yaml");
    std::fs::write(&path, DOMAIN.replace("first", "second")).unwrap();
    let manifests = Manifests::read(&path).unwrap();
    let domain = "a".parse().unwrap();
    assert_eq!(manifests.problems_of_set(&resources(DOMAIN), Some(&domain)), []);
    let other = "b".parse().unwrap();
    let problems = manifests.problems_of_set(&[], Some(&other));
    assert!(problems[0].message.contains("can never change"), "{problems:?}");
}
